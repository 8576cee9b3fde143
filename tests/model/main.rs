//! The model test: the same random SQL in the mount and on a plain file, writers and
//! the daemon killed at random moments, compared after every step.
//!
//! Runs the seeds of tests/regressions.txt; `LITEFS_SEED=n` one seed,
//! `LITEFS_SOAK_MINUTES=n` fresh ones for so long, `LITEFS_STEPS` steps of each.

#[path = "../support/mod.rs"]
mod support;

mod sql;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sql::Allowed;
use world::{Cut, World};

const STEPS: u64 = 30;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("worker") {
        support::worker::serve();
        return ExitCode::SUCCESS;
    }
    if std::env::args().any(|argument| argument == "--list") {
        println!("model: test");
        return ExitCode::SUCCESS;
    }
    if !support::can_mount() {
        return ExitCode::SUCCESS;
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let steps = number("LITEFS_STEPS").unwrap_or(STEPS);
    if let Some(seed) = number("LITEFS_SEED") {
        return verdict(u64::from(run(seed, steps)), 1);
    }
    if let Some(minutes) = number("LITEFS_SOAK_MINUTES") {
        return soak(Duration::from_secs(60 * minutes), steps);
    }
    let seeds = regressions();
    let passed = seeds.iter().map(|seed| u64::from(run(*seed, steps))).sum();
    verdict(passed, seeds.len() as u64)
}

/// The seeds of tests/regressions.txt: a number at the start of a line.
fn regressions() -> Vec<u64> {
    include_str!("../regressions.txt")
        .lines()
        .filter_map(|line| line.split('#').next()?.trim().parse().ok())
        .collect()
}

fn soak(span: Duration, steps: u64) -> ExitCode {
    let start = Instant::now();
    let mut seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_secs() * 1000);
    let (mut passed, mut ran) = (0, 0);
    while start.elapsed() < span {
        seed += 1;
        ran += 1;
        passed += u64::from(run(seed, steps));
    }
    verdict(passed, ran)
}

fn verdict(passed: u64, ran: u64) -> ExitCode {
    let failed = ran - passed;
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n"
    );
    // 101 is what a failing test program ends with.
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

/// One run; true if it passed.
fn run(seed: u64, steps: u64) -> bool {
    let start = Instant::now();
    println!("model seed {seed} ...");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed);
        world.compare();
        for step in 0..steps {
            let named = take_step(&mut world);
            let compared = catch_unwind(AssertUnwindSafe(|| {
                world.compare();
                if step % 4 == 3 || step + 1 == steps {
                    world.replay();
                }
            }));
            if let Err(panic) = compared {
                eprintln!("after step {step}: {named}");
                std::panic::resume_unwind(panic);
            }
        }
        world.disconnect(false);
        world.node.stop();
        world.done
    }));
    match outcome {
        Ok((done, refused)) => {
            println!(
                "test model_seed_{seed} ... ok ({done} groups, {refused} refused, {:?})",
                start.elapsed()
            );
            true
        }
        Err(_) => {
            println!(
                "test model_seed_{seed} ... FAILED (repeat: LITEFS_SEED={seed} LITEFS_STEPS={steps} cargo test --test model)"
            );
            false
        }
    }
}

/// One step of a run; its name.
fn take_step(world: &mut World) -> &'static str {
    if world.random.one_in(4) {
        world.end_snapshot();
    }
    if world.random.one_in(4) {
        world.begin_snapshot();
    }
    if world.random.one_in(3) {
        let hand = world.random.below(world.hands.len() as u64) as usize;
        world.reconnect(hand, &["PRAGMA user_version"]);
    }
    let ordinary = Allowed { spills: true, alone: false, switches: true, attached: false, exclusive: false };
    match world.random.below(20) {
        0..=6 => {
            let hand = world.random.below(3) as usize;
            // Leaving EXCLUSIVE takes a read of every attached database: not both at once.
            let attached = world.random.one_in(5);
            let exclusive = !attached && world.random.one_in(6);
            let switches = world.random.one_in(2);
            let allowed = Allowed { alone: true, switches, attached, exclusive, ..ordinary };
            let script = world.script(hand, 12, allowed);
            world.run(&[(hand, script)], Cut::No);
            "one writer"
        }
        7..=9 => {
            let scripts: Vec<_> = (0..3).map(|hand| (hand, world.script(hand, 8, ordinary))).collect();
            world.run(&scripts, Cut::No);
            "three writers"
        }
        10..=13 => {
            cut_off(world, ordinary, false);
            "a writer is killed"
        }
        14..=16 => {
            cut_off(world, ordinary, true);
            "the daemon is killed"
        }
        17 => {
            let wipe = world.random.one_in(2);
            world.end_snapshot();
            world.disconnect(false);
            world.connect();
            world.restart(false, wipe);
            "stop and start"
        }
        18 => {
            let wipe = world.random.one_in(2);
            world.end_snapshot();
            world.restart(true, wipe);
            "kill and start"
        }
        _ => {
            world.end_snapshot();
            world.recreate();
            "drop and recreate"
        }
    }
}

/// Writers at work, and one of them or the daemon is killed.
fn cut_off(world: &mut World, ordinary: Allowed, daemon: bool) {
    let wal = world.is_wal(0) || world.is_wal(1);
    // Only rollback journals make a commit over two files atomic.
    let attached = !wal && world.random.one_in(3);
    let first = world.random.below(3) as usize;
    let exclusive = !attached && world.random.one_in(5);
    if exclusive && world.random.one_in(2) {
        // Alone with the database: then its wal-index lives on the connection's heap.
        world.disconnect(false);
        world.connect();
    }
    world.reconnect(first, &["PRAGMA user_version"]);
    let groups = 25;
    let allowed = Allowed { switches: !attached && ordinary.switches, attached, exclusive, ..ordinary };
    let mut scripts = vec![(first, world.script(first, groups, allowed))];
    if !attached && world.random.one_in(2) {
        let second = (first + 1) % 3;
        scripts.push((second, world.script(second, groups, ordinary)));
    }
    let after = world.random.below(groups) as usize;
    let pause = Duration::from_micros(world.random.below(4000));
    let cut = if daemon { Cut::Daemon { after, pause } } else { Cut::Writer { after, pause } };
    world.run(&scripts, cut);
}
