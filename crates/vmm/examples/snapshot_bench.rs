//! What snapshots cost on this machine, without a virtual machine: prints a table and asserts nothing.
//!
//! `cargo run --release -p vmm --example snapshot_bench [DIRECTORY]`; files are written to the directory (else a temporary
//! one) and read back from the page cache. The memory is that of a typical small guest: 128 MiB, of which 40 MiB have
//! content in runs of different lengths; a clone touches 8 MiB and changes 4 of them.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm::memory::{Memory, private};
use vmm::snapshot::{
    Access, Host, Key, PAGE_BYTES, Ranges, Template, Wanted, WorkingSet, dump_private, load, memory, save, windows,
};

type Work<'a> = &'a dyn Fn(&Memory) -> Result<(), Box<dyn Error>>;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 128 * MIB;
const DATA: u64 = 40 * MIB;
const TOUCHED: u64 = 8 * MIB;
const ROUNDS: usize = 25;

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let directory = std::env::args_os().nth(1).map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    println!("{:<54}{:>9}{:>9}{:>9}", "", "best, ms", "median", "MB/s");
    files(&directory)?;
    clones()
}

/// Making, saving and loading templates.
fn files(directory: &Path) -> Result<(), Box<dyn Error>> {
    let (key, host) = (Key::generate()?, Host::this([0; 32], BTreeMap::new()));
    let path = directory.join("bench.snapshot");
    let file = guest()?;
    let template = Template::from_paused(file.try_clone()?, MEMORY, vec![1; 20_000])?;
    let from_paused = rounds(|| {
        let copy = guest()?;
        let begun = Instant::now();
        let template = Template::from_paused(copy, MEMORY, vec![1; 20_000])?;
        let elapsed = begun.elapsed();
        drop(template);
        Ok(elapsed)
    })?;
    line("template of a stopped machine (seal, look, hash)", from_paused, DATA);
    let mut bytes = 0;
    let saving = rounds(|| {
        let begun = Instant::now();
        bytes = save(&path, &template, &key, &host)?;
        Ok(begun.elapsed())
    })?;
    line("save, down to the disk", saving, DATA);
    let loading = rounds(|| {
        let begun = Instant::now();
        let template = load(&path, &key, &host)?;
        let elapsed = begun.elapsed();
        drop(template);
        Ok(elapsed)
    })?;
    line("load from the page cache", loading, DATA);
    println!("{:<54}{:>9.1} MiB of {} MiB", "file", bytes as f64 / MIB as f64, MEMORY / MIB);
    let diff = File::from(memory(MEMORY, false)?);
    for page in 0..TOUCHED / PAGE_BYTES {
        diff.write_all_at(&[7; PAGE_BYTES as usize], page * 5 * PAGE_BYTES)?;
    }
    let flattening = rounds(|| {
        let begun = Instant::now();
        let template = Template::flatten(&template, &diff, vec![1; 20_000])?;
        let elapsed = begun.elapsed();
        drop(template);
        Ok(elapsed)
    })?;
    line("flatten a diff of 8 MiB over it", flattening, DATA + TOUCHED);
    std::fs::remove_file(path)?;
    Ok(())
}

/// What a clone pays for its memory.
fn clones() -> Result<(), Box<dyn Error>> {
    let template = Template::from_paused(guest()?, MEMORY, Vec::new())?;
    let fd = template.memory().try_clone_to_owned()?;
    let pagemap = File::open("/proc/self/pagemap")?;
    let touched: Vec<_> = (0..TOUCHED / MIB * 16).map(|nth| nth * 2 * 65_536..nth * 2 * 65_536 + 65_536).collect();
    let set = WorkingSet::from_ranges(touched.clone(), MEMORY);
    let pages = || touched.iter().flat_map(|range| range.clone().step_by(PAGE_BYTES as usize)).map(GuestAddress);
    let timed = |work: Work<'_>| {
        rounds(|| {
            let clone = private(&fd, MEMORY)?;
            let begun = Instant::now();
            work(&clone)?;
            Ok(begun.elapsed())
        })
    };
    line(
        "map and unmap a clone",
        rounds(|| {
            let begun = Instant::now();
            drop(private(&fd, MEMORY)?);
            Ok(begun.elapsed())
        })?,
        0,
    );
    let populate = |clone: &Memory, access| -> Result<(), Box<dyn Error>> {
        set.populate(clone, access)?;
        Ok(())
    };
    let read_all = |clone: &Memory| -> Result<(), Box<dyn Error>> {
        for page in pages() {
            std::hint::black_box(clone.read_obj::<u8>(page)?);
        }
        Ok(())
    };
    let write_all = |clone: &Memory| -> Result<(), Box<dyn Error>> {
        for page in pages() {
            clone.write_obj(1_u8, page)?;
        }
        Ok(())
    };
    line("8 MiB read for the first time, page by page", timed(&read_all)?, TOUCHED);
    line("8 MiB populated for reading", timed(&|clone| populate(clone, Access::Read))?, TOUCHED);
    line("8 MiB written for the first time, page by page", timed(&write_all)?, TOUCHED);
    line("8 MiB populated for writing", timed(&|clone| populate(clone, Access::Write))?, TOUCHED);
    let after = rounds(|| {
        let clone = private(&fd, MEMORY)?;
        set.populate(&clone, Access::Read)?;
        let begun = Instant::now();
        write_all(&clone)?;
        Ok(begun.elapsed())
    })?;
    line("8 MiB populated for reading, then written", after, TOUCHED);
    let clone = private(&fd, MEMORY)?;
    read_all(&clone)?;
    for page in pages().step_by(2) {
        clone.write_obj(1_u8, page)?;
    }
    let recorded = rounds(|| {
        let begun = Instant::now();
        WorkingSet::from_pagemap(pagemap.as_fd(), &windows(&clone))?;
        Ok(begun.elapsed())
    })?;
    line("record the working set", recorded, TOUCHED);
    let found = rounds(|| {
        let begun = Instant::now();
        for window in windows(&clone) {
            for range in Ranges::new(pagemap.as_fd(), window, Wanted::Private) {
                range?;
            }
        }
        Ok(begun.elapsed())
    })?;
    line("find 4 MiB of changed pages, every second one", found, TOUCHED / 2);
    let dumped = rounds(|| {
        let out = memory(MEMORY, false)?;
        let begun = Instant::now();
        dump_private(&clone, pagemap.as_fd(), out.as_fd())?;
        Ok(begun.elapsed())
    })?;
    line("dump them", dumped, TOUCHED / 2);

    let holes = template.holes(MIB);
    let hole = holes.iter().max_by_key(|hole| hole.end - hole.start).cloned().unwrap_or(0..0);
    let fresh = hole.start..hole.start + TOUCHED.min(hole.end - hole.start);
    let write = |clone: &Memory| -> Result<(), Box<dyn Error>> {
        for at in fresh.clone().step_by(PAGE_BYTES as usize) {
            clone.write_obj(1_u8, GuestAddress(at))?;
        }
        Ok(())
    };
    let first = {
        let clone = private(&fd, MEMORY)?;
        let begun = Instant::now();
        write(&clone)?;
        begun.elapsed()
    };
    line("8 MiB written in a hole of the template, first clone", [first; 2], TOUCHED);
    line("8 MiB written in a hole of the template, next clones", timed(&write)?, TOUCHED);
    let blocks = rustix::fs::fstat(&fd)?.st_blocks as u64 * 512;
    println!("{:<54}{:>9.1} MiB", "the template's memory grew by that to", blocks as f64 / MIB as f64);
    let anonymous = rounds(|| {
        let clone = Memory::from_ranges(&[(GuestAddress(0), MEMORY as usize)])?;
        let begun = Instant::now();
        write(&clone)?;
        Ok(begun.elapsed())
    })?;
    line("8 MiB written in anonymous memory", anonymous, TOUCHED);
    Ok(())
}

/// A guest's memory: a kernel in one run, then pieces of 4 to 60 KiB with holes between them, then nothing.
fn guest() -> Result<OwnedFd, Box<dyn Error>> {
    let file = File::from(memory(MEMORY, false)?);
    let mut random = 1_u64;
    let mut at = 0;
    let mut filled = 0;
    while filled < DATA {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let run = if filled == 0 { 16 * MIB } else { ((random >> 33) % 15 + 1) * PAGE_BYTES }.min(DATA - filled);
        let content: Vec<u8> = (0..run).map(|byte| (byte.wrapping_mul(random) >> 40) as u8 | 1).collect();
        file.write_all_at(&content, at)?;
        filled += run;
        at += run + ((random >> 50) % 8) * PAGE_BYTES;
    }
    Ok(OwnedFd::from(file))
}

/// The best and the middle of some rounds: on a machine that does other things, the best is what the work itself costs.
fn rounds(mut once: impl FnMut() -> Result<Duration, Box<dyn Error>>) -> Result<[Duration; 2], Box<dyn Error>> {
    let mut times = (0..ROUNDS).map(|_| once()).collect::<Result<Vec<_>, _>>()?;
    times.sort_unstable();
    Ok([times[0], times[ROUNDS / 2]])
}

fn line(what: &str, [best, median]: [Duration; 2], bytes: u64) {
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    print!("{what:<54}{:>9.2}{:>9.2}", milliseconds(best), milliseconds(median));
    if bytes == 0 {
        println!();
    } else {
        println!("{:>9.0}", bytes as f64 / 1e6 / best.as_secs_f64());
    }
}
