//! The maps of the compiled programs are the inventory of `lb_common::abi`: none missing, none extra, none different. And the
//! hash of the inventory is the one on record. The first needs root.

use aya::maps::{Map, MapData};
use lb_common::abi::{self, INVENTORY};
use lb_tests::kernel::Program;
use lb_userspace::dataplane;
use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

/// Kind, key size, value size, capacity, flags.
type Shape = (u32, u32, u32, u32, u32);

fn data(map: &Map) -> &MapData {
    match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::LpmTrie(data)
        | Map::ProgramArray(data)
        | Map::PerfEventArray(data)
        | Map::RingBuf(data)
        | Map::ArrayOfMaps(data)
        | Map::HashOfMaps(data)
        | Map::Unsupported(data) => data,
        other => panic!("a kind of map the inventory has no word for: {other:?}"),
    }
}

/// The daemon's maps as the kernel made them, without anybody's wish for another capacity.
fn loaded(elf: &[u8], program: &'static str) -> BTreeMap<String, Shape> {
    let mut program = Program::load(elf, program, &[]);
    let shape = |map: &Map| {
        let info = data(map).info().expect("map info");
        let kind = info.map_type().expect("a kind of map aya knows") as u32;
        (kind, info.key_size(), info.value_size(), info.max_entries(), info.map_flags())
    };
    let maps = program.ebpf().maps().map(|(name, map)| (name.to_owned(), shape(map)));
    maps.filter(|(name, shape)| !own(name, *shape)).collect()
}

fn inventory() -> BTreeMap<String, Shape> {
    let shape = |map: &abi::MapInfo| (map.kind as u32, map.key_size, map.value_size, map.capacity, map.flags);
    INVENTORY.iter().map(|map| (map.name.to_owned(), shape(map))).collect()
}

/// Maps that belong to one version of the program and are not the daemon's: the compiler's read-only data (flag
/// BPF_F_RDONLY_PROG, one element) and the ring buffer of aya-log.
fn own(name: &str, shape: Shape) -> bool {
    const READ_ONLY: u32 = 1 << 7;
    const RING_BUFFER: u32 = 27;
    match name {
        "AYA_LOGS" => shape.0 == RING_BUFFER,
        // Of the program that `explain` asks: made anew with every load.
        "NOTES" => shape.3 == 1,
        name => name.starts_with(".rodata") && (shape.3, shape.4) == (1, READ_ONLY),
    }
}

#[test]
fn the_balancer_has_the_maps_of_the_inventory() {
    assert_eq!(inventory().len(), INVENTORY.len(), "a name occurs twice");
    assert_eq!(loaded(dataplane::LB, "lb"), inventory(), "left: the ELF, right: lb_common::abi::INVENTORY");
}

/// The benchmark's program has the balancer's maps and two of its own.
#[test]
fn the_benchmark_has_them_too() {
    let mut maps = loaded(dataplane::BENCH, "lb4_one");
    assert!(maps.remove("BENCH").is_some() && maps.remove("COUNT").is_some());
    assert_eq!(maps, inventory());
}

/// What pinned maps are recognised by. It changes with any name, kind, size or flag of a map, and with `LAYOUT`.
///
/// If this test fails and the change of the layout was meant, a new daemon will not adopt the maps of a running one:
/// it makes its own beside them and moves the interfaces over. Say so in the release notes, and write the new record with
/// `LBD_BLESS=1 cargo test -p lb-tests --test abi_inventory`. If the meaning of a field changed and no size
/// did, nothing fails here: raise `LAYOUT` in `lb-common/src/abi/inventory.rs`, then bless.
#[test]
fn the_hash_is_on_record() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/abi.txt");
    let mut text = format!("hash {:016x}\n", abi::hash());
    for map in INVENTORY {
        let _ = writeln!(
            text,
            "{:15} {:?}, key {}, value {}, {} entries, flags {:#x}{}",
            map.name,
            map.kind,
            map.key_size,
            map.value_size,
            map.capacity,
            map.flags,
            if map.grows { ", grows" } else { "" }
        );
    }
    if std::env::var_os("LBD_BLESS").is_some() {
        fs::write(&path, &text).expect("golden/abi.txt can be written");
    }
    let golden = fs::read_to_string(&path).expect("golden/abi.txt; make it with LBD_BLESS=1");
    assert!(
        text == golden,
        "the layout of the maps changed; see the comment of this test\nfound:\n{text}\non record:\n{golden}"
    );
}
