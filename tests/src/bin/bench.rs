//! dev
use aya::{
    EbpfLoader,
    maps::{Array, HashMap},
    programs::{TestRun, TestRunOptions, Xdp},
};
use lb_common::abi::*;
fn main() -> anyhow::Result<()> {
    let elf = std::fs::read(std::env::args().nth(1).unwrap())?;
    let mut bpf = EbpfLoader::new().load(&elf)?;
    let mut vips: HashMap<_, [u8; 4], VipEntry> = HashMap::try_from(bpf.take_map("VIPS4").unwrap())?;
    let mut rules = [PortRule::NONE; 4];
    rules[0] = PortRule { lo: 80, hi: 80, service: 1, proto: 6, pad: 0 };
    vips.insert([192, 0, 2, 10], VipEntry { vip: 1, flags: 0, rules }, 0)?;
    let mut svc: Array<_, ServiceEntry> = Array::try_from(bpf.take_map("SERVICES").unwrap())?;
    svc.set(1, ServiceEntry { ring_base: 0, ring_size: 65537, seed: 7, ..Default::default() }, 0)?;
    let mut ring: Array<_, u64> = Array::try_from(bpf.take_map("RING").unwrap())?;
    for i in 0..65537u32 {
        ring.set(i, Slot::plain(1 + i % 100, 0).0, 0)?;
    }
    let mut be: Array<_, BackendEntry> = Array::try_from(bpf.take_map("BACKENDS").unwrap())?;
    let mut flows: Array<_, u32> = Array::try_from(bpf.take_map("BENCH").unwrap())?;
    for name in ["floor4_one", "floor4_many", "lb4_one", "lb4_many"] {
        let p: &mut Xdp = bpf.program_mut(name).unwrap().try_into()?;
        p.load()?;
        println!(
            "{name} verified insns {:?} jited {:?}",
            p.info()?.verified_instruction_count(),
            p.info()?.size_jitted()
        );
    }
    let mut frame = vec![
        2u8, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1,
        192, 0, 2, 10, 0x80, 1, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 0, 0, 0, 0, 0,
    ];
    frame.resize(60, 0);
    let nonvip = {
        let mut f = frame.clone();
        f[33] = 99;
        f
    };
    let mut results: std::collections::BTreeMap<String, Vec<f64>> = Default::default();
    for round in 0..15 {
        for (kind, vl) in [(1u8, "dsr"), (2, "ipip"), (3, "gue")] {
            for i in 1..=100 {
                be.set(
                    i,
                    BackendEntry {
                        l2: [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1],
                        ifindex: 1,
                        outer_src: [198, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                        outer_dst: [10, 1, 0, i as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                        mtu: 1500,
                        vlan: 0,
                        kind,
                        family: 4,
                        flags: 0,
                        entropy_bits: 16,
                        incarnation: 0,
                        gue_port: 6080,
                        service: 1,
                    },
                    0,
                )?;
            }
            for (name, n, f) in [
                ("floor4_one", 1u32, &frame),
                ("lb4_one", 1, &frame),
                ("floor4_many", 1_000_000, &frame),
                ("lb4_many", 1_000_000, &frame),
                ("floor4_one", 1, &nonvip),
                ("lb4_one", 1, &nonvip),
            ] {
                flows.set(0, n, 0)?;
                flows.set(
                    1,
                    if name.starts_with("lb") && f[33] != 99 { [0, 0, 20, 28][kind as usize] } else { 0 },
                    0,
                )?;
                let p: &mut Xdp = bpf.program_mut(name).unwrap().try_into()?;
                let mut o = TestRunOptions::new();
                o.data_in = Some(f);
                o.repeat = 200_000;
                let mut out = vec![0u8; 256];
                o.data_out = Some(&mut out);
                let r = p.test_run(o)?;
                let novip = if f[33] == 99 { "novip " } else { "" };
                if round == 0 {
                    println!(
                        "{vl} {name} {novip}ret {} out {} {:?}",
                        r.return_value, r.data_size_out, r.duration
                    );
                }
                results.entry(format!("{vl} {novip}{name}")).or_default().push(r.duration.as_nanos() as f64);
            }
        }
    }
    for (k, mut v) in results {
        v.sort_by(|a, b| a.total_cmp(b));
        println!("{k:30} median {:6.1}", v[v.len() / 2]);
    }
    Ok(())
}
