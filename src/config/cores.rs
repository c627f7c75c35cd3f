//! cores.toml: which CPUs carry a shard, and the size of each one's ring.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Report, Section, kind};
use super::settings::{CORE, CORES, CoreSection, Setting};
use super::suggest::did_you_mean;
use super::values::Cpu;
use super::{Cores, Shard};

/// Reads a file's text. `cpus` are those the process may run on. `None` if it is not TOML.
pub(super) fn parse(report: &mut Report<'_>, defaults: Shard, cpus: &[usize]) -> Option<Cores> {
    let tree = report.tree()?;
    let table = tree.get_ref();
    for (key, _) in table {
        if !TOP_LEVEL.contains(&key.get_ref().as_ref()) {
            let hint = match CORE.iter().any(|setting| setting.name == key.get_ref()) {
                true => "; it belongs into [default] or a [[core]]".to_owned(),
                false => did_you_mean(key.get_ref(), TOP_LEVEL.into_iter()),
            };
            report.add(key.span(), format!("unknown key `{}`{hint}", key.get_ref()));
        }
    }
    let housekeeping = read_housekeeping(report, table, cpus);
    let default = read_default(report, table, defaults);
    let shards = match table.get("core") {
        Some(blocks) => read_cores(report, blocks, default, cpus),
        None => every_cpu(report, default, cpus, &housekeeping),
    };
    Some(Cores { shards, housekeeping })
}

/// A shard with default numbers on each of these CPUs.
pub(super) fn on_every(cpus: &[usize], defaults: Shard) -> Vec<Shard> {
    cpus.iter().map(|&cpu| Shard { cpu, ..defaults }).collect()
}

/// The numbers of a shard of which nothing is said.
pub(super) fn defaults() -> Result<Shard, String> {
    let shard = Shard {
        cpu: 0,
        sq_entries: 0,
        cq_entries: 0,
        recv_buffers: 0,
        recv_buffer_bytes: 0,
        busy_poll_us: 0,
    };
    let mut section = CoreSection { cpu: Cpu(None), shard };
    Setting::set_defaults(CORE, &mut section)?;
    Ok(section.shard)
}

fn read_housekeeping(report: &mut Report<'_>, table: &DeTable<'_>, cpus: &[usize]) -> Vec<usize> {
    let mut housekeeping = Vec::new();
    for setting in CORES {
        let Some(value) = table.get(setting.name) else { continue };
        if let Err(fault) = setting.read(&mut housekeeping, value) {
            report.add(fault.span, fault.text);
        }
        for cpu in housekeeping.iter().filter(|cpu| !cpus.contains(cpu)) {
            report.add(value.span(), format!("`{}` has CPU {cpu}, {}", setting.name, not_ours(cpus)));
        }
    }
    housekeeping
}

fn read_default(report: &mut Report<'_>, table: &DeTable<'_>, defaults: Shard) -> Shard {
    let Some((key, value)) = table.get_key_value("default") else { return defaults };
    let DeValue::Table(table) = value.get_ref() else {
        report.add(value.span(), format!("[default] must be a table, not {}", kind(value.get_ref())));
        return defaults;
    };
    let section = Section { title: "[default]".into(), header: key.span(), table };
    let mut block = CoreSection { cpu: Cpu(None), shard: defaults };
    report.read(CORE, &mut block, &section);
    if block.cpu.0.is_some() {
        report.add(section.span_of("cpu"), "`cpu` belongs into a [[core]], not into [default]");
    }
    check(report, &section, &block.shard);
    block.shard
}

fn read_cores(
    report: &mut Report<'_>,
    blocks: &Spanned<DeValue<'_>>,
    default: Shard,
    cpus: &[usize],
) -> Vec<Shard> {
    let DeValue::Array(array) = blocks.get_ref() else {
        report.add(blocks.span(), "a core is written [[core]], with two brackets");
        return Vec::new();
    };
    let mut shards: Vec<Shard> = Vec::new();
    for block in array.iter() {
        let DeValue::Table(table) = block.get_ref() else {
            report.add(block.span(), format!("[[core]] must be a table, not {}", kind(block.get_ref())));
            continue;
        };
        let section = Section { title: "[[core]]".into(), header: block.span(), table };
        let mut block = CoreSection { cpu: Cpu(None), shard: default };
        report.read(CORE, &mut block, &section);
        check(report, &section, &block.shard);
        let span = section.span_of("cpu");
        match block.cpu.0 {
            None if table.contains_key("cpu") => {}
            None => report.add(span, "[[core]] needs a CPU, like `cpu = 2`"),
            Some(cpu) if !cpus.contains(&cpu) => {
                report.add(span, format!("`cpu` is {cpu}, {}", not_ours(cpus)));
            }
            Some(cpu) if shards.iter().any(|shard| shard.cpu == cpu) => {
                report.add(span, format!("CPU {cpu} has a [[core]] already; one shard per CPU"));
            }
            Some(cpu) => shards.push(Shard { cpu, ..block.shard }),
        }
    }
    shards
}

fn every_cpu(report: &mut Report<'_>, default: Shard, cpus: &[usize], housekeeping: &[usize]) -> Vec<Shard> {
    let free: Vec<usize> = cpus.iter().copied().filter(|cpu| !housekeeping.contains(cpu)).collect();
    if free.is_empty() {
        report.add(
            0..0,
            "`housekeeping` leaves no CPU for a shard; leave one out, or list the shards as [[core]]",
        );
    }
    on_every(&free, default)
}

/// What holds between numbers, beyond the limits of each.
fn check(report: &mut Report<'_>, section: &Section<'_>, shard: &Shard) {
    let powers = [
        ("sq_entries", shard.sq_entries),
        ("cq_entries", shard.cq_entries),
        ("recv_buffers", shard.recv_buffers),
    ];
    for (key, number) in powers {
        if section.table.contains_key(key) && number > 0 && !number.is_power_of_two() {
            let up = number.checked_next_power_of_two().unwrap_or(number);
            report.add(
                section.span_of(key),
                format!("`{key}` must be a power of two, like {} or {up}, and is {number}", up / 2),
            );
        }
    }
    if shard.cq_entries < shard.sq_entries {
        let (cq, sq) = (shard.cq_entries, shard.sq_entries);
        report.add(
            section.span_of("cq_entries"),
            format!(
                "`cq_entries` must be at least `sq_entries` ({sq}), and is {cq}; eight times as many is usual"
            ),
        );
    }
    if !shard.recv_buffer_bytes.is_multiple_of(CACHE_LINE_BYTES) {
        report.add(
            section.span_of("recv_buffer_bytes"),
            format!(
                "`recv_buffer_bytes` must be a multiple of {CACHE_LINE_BYTES}, and is {}",
                shard.recv_buffer_bytes
            ),
        );
    }
}

fn not_ours(cpus: &[usize]) -> String {
    format!("which this process may not run on; it may on {}", list(cpus))
}

/// CPUs as `0,1` or `0-3,8`.
pub(super) fn list(cpus: &[usize]) -> String {
    let mut sorted = cpus.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for cpu in sorted {
        match ranges.last_mut() {
            Some(range) if range.end == cpu => range.end += 1,
            _ => ranges.push(cpu..cpu + 1),
        }
    }
    let text = |range: &Range<usize>| match range.len() {
        1 => range.start.to_string(),
        2 => format!("{},{}", range.start, range.end - 1),
        _ => format!("{}-{}", range.start, range.end - 1),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

const TOP_LEVEL: [&str; 3] = ["housekeeping", "default", "core"];

/// Buffers start at cache lines, so that two of them share none.
const CACHE_LINE_BYTES: u32 = 64;
