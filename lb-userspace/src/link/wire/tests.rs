use super::*;
use proptest::prelude::*;

fn hello(versions: (u16, u16)) -> Hello {
    let beat = BeatTerms { id: 7, key: "a".repeat(43), port: 9760, interval_us: 10_000 };
    let text = |text: &str| text.to_owned();
    Hello { versions, node: text("lb1"), boot: text("00ff"), software: text("0.1.0"), beat }
}

fn message() -> impl Strategy<Value = Message> {
    let bytes = || prop::collection::vec(any::<u8>(), 1..300);
    let name = "[a-z][a-z0-9_.-]{0,20}".prop_map(|name| name.parse::<VrrpName>().unwrap());
    prop_oneof![
        (any::<(u16, u16)>()).prop_map(|versions| Message::Hello(hello(versions))),
        Just(Message::Use),
        bytes().prop_map(Message::Part),
        bytes().prop_map(Message::End),
        any::<u64>().prop_map(Message::Ping),
        any::<u64>().prop_map(Message::Pong),
        (name.clone(), any::<u8>(), "[a-f0-9]{0,64}").prop_map(|(name, priority, services)| {
            let status = InstanceStatus {
                state: "master".to_owned(),
                priority,
                gated: false,
                own: vec![[10, 0, 0, 2].into()],
            };
            Message::Status(Status { services, instances: [(name, status)].into() })
        }),
        (prop_oneof![Just(Role::TakeOver), Just(Role::Taken), Just(Role::Want)], name)
            .prop_map(|(role, name)| Message::Role(role, name)),
        bytes().prop_map(Message::Fresh1),
        bytes().prop_map(Message::Fresh2),
        Just(Message::Fresh3),
        Just(Message::AskFresh),
        ".{0,60}".prop_map(Message::Close),
        (13u8..).prop_map(Message::Unknown),
    ]
}

proptest! {
    #[test]
    fn what_is_said_is_understood(message in message()) {
        let record = message.encode();
        prop_assert!(record.len() <= MAX_RECORD);
        prop_assert_eq!(Message::decode(&record), Ok(message));
    }

    /// Whatever comes: no panic, and what is understood is said again the same way.
    #[test]
    fn anything_may_come(record in prop::collection::vec(any::<u8>(), 0..80)) {
        // What a later version means cannot be said by this one.
        if let Ok(message) = Message::decode(&record)
            && !matches!(message, Message::Unknown(_))
        {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn frames_come_whole(frame in prop::collection::vec(any::<u8>(), 0..=200).prop_flat_map(|seed| {
        (Just(seed), 0..=MAX_FRAME).prop_map(|(seed, length)| {
            seed.iter().copied().chain(1..=255).cycle().take(length).collect::<Vec<u8>>()
        })
    })) {
        let mut assembly = Assembly::default();
        let mut whole = Vec::new();
        for part in parts(frame.clone()) {
            prop_assert!(whole.is_empty(), "one end only");
            match part {
                Message::Part(part) => assembly.add(&part).unwrap(),
                Message::End(part) => whole.push(assembly.end(&part).unwrap()),
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(whole, vec![frame]);
    }
}

#[test]
fn a_frame_has_an_end() {
    let mut assembly = Assembly::default();
    assembly.add(&[0; MAX_PART]).unwrap();
    assembly.add(&[0; MAX_PART]).unwrap();
    assert_eq!(assembly.add(&[0]), None);
    assert_eq!(assembly.end(&[]).unwrap().len(), MAX_FRAME);
    assert_eq!(assembly.end(&[]).unwrap(), Vec::<u8>::new());
}

#[test]
fn versions_differ_by_one() {
    let both = |ours, theirs| hello(ours).common(theirs);
    assert_eq!(both((1, 1), (1, 1)), Some(1));
    assert_eq!(both((1, 2), (1, 1)), Some(1));
    assert_eq!(both((1, 2), (2, 3)), Some(2));
    assert_eq!(both((1, 1), (2, 3)), None);
    assert_eq!(both((3, 4), (1, 2)), None);
}

#[test]
fn what_is_wrong_is_said() {
    let said = |record: &[u8]| Message::decode(record).unwrap_err().to_string();
    assert_eq!(said(&[]), "an empty record");
    assert_eq!(said(&[1, 2]), "a record of kind 1 is too long");
    assert_eq!(said(&[2]), "a record of kind 2 is an empty part with more to come");
    assert_eq!(said(&[4, 1]), "a record of kind 4 is not of eight octets");
    assert_eq!(said(&[0, b'{', b'}']), "a record of kind 0 is not a greeting");
    assert_eq!(said(&[7, 0]), "a record of kind 7 is without the name of an instance");
    let mut unnamed = hello((1, 1));
    unnamed.node = "a\nb".to_owned();
    let said = Message::decode(&Message::Hello(unnamed).encode()).unwrap_err();
    assert_eq!(said.to_string(), "a record of kind 0 is without the name of a node");
    // A later version may say more in what there is already.
    let mut later = serde_json::to_value(hello((1, 2))).unwrap();
    later["colour"] = "green".into();
    let record = [&[0], serde_json::to_vec(&later).unwrap().as_slice()].concat();
    assert_eq!(Message::decode(&record), Ok(Message::Hello(hello((1, 2)))));
}

#[test]
fn a_cause_that_is_no_text_is_cut_like_one_that_is() {
    let record: Vec<u8> = [12].into_iter().chain(std::iter::repeat_n(0xff, MAX_CAUSE)).collect();
    let message = Message::decode(&record).unwrap();
    assert!(matches!(&message, Message::Close(cause) if cause.len() <= MAX_CAUSE), "{message:?}");
    assert_eq!(Message::decode(&message.encode()), Ok(message));
}
