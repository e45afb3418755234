//! The cases, and how they are timed.
//!
//! All clients of a case take turns, so that a slow moment of the machine hits each of them, and
//! the median of the ratios within each round is what is reported.

use crate::clients::{self, Client, Into, With};
use crate::floor::Floor;
use crate::growth::Growth;
use crate::memory;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::time::Instant;

const KIB: usize = 1024;
/// Bytes of the comm buffers.
const BUFFERS: [usize; 3] = [4 * KIB, 64 * KIB, KIB * KIB];
/// Bytes of the messages; besides them one that fills the buffer.
const MESSAGES: [usize; 3] = [16, KIB, 4 * KIB];
/// A v1 header.
const HEADER: usize = 24;
/// How long one client has its turn.
const TURN_NS: f64 = 200_000.0;

/// Forms of a call, in the order in which [`Case::ours`] has them.
pub const FORMS: [&str; 3] = ["communicate", "communicate_into", "communicate_with"];

/// The measured figures.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Figures {
    /// The processor that measured the times.
    #[serde(default)]
    pub processor: String,
    /// By buffer, message and mailbox.
    pub cases: Vec<Case>,
    /// How cost grows with other things.
    pub growth: Growth,
}

/// One message through one comm buffer.
#[derive(Debug, Deserialize, Serialize)]
pub struct Case {
    /// Bytes of the comm buffer.
    pub buffer: usize,
    /// Bytes of the message, and of the response.
    pub message: usize,
    /// Whether there is a status mailbox.
    pub mailbox: bool,
    /// The copies alone, in nanoseconds.
    pub floor_ns: f64,
    /// The published crate's `communicate`, in nanoseconds.
    pub published_ns: f64,
    /// Ours, in the order of [`FORMS`].
    pub ours: Vec<Ours>,
}

/// One form of a call of ours.
#[derive(Debug, Deserialize, Serialize)]
pub struct Ours {
    /// Nanoseconds.
    pub ns: f64,
    /// Against the published crate's `communicate`.
    pub to_published: f64,
    /// Against the copies alone.
    pub to_floor: f64,
    /// Against copies and wiping.
    pub to_floor_and_wipe: f64,
    /// Allocations of one call.
    pub allocations: usize,
}

impl Case {
    /// Its name in tables.
    pub fn name(&self) -> String {
        let mailbox = if self.mailbox { "mailbox" } else { "no mailbox" };
        let message = if self.message == self.buffer - HEADER {
            "full".into()
        } else {
            size(self.message)
        };
        format!("{} / {message}, {mailbox}", size(self.buffer))
    }
}

/// A number of bytes, for people.
pub fn size(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= KIB * KIB => format!("{} MiB", bytes / KIB / KIB),
        bytes if bytes >= KIB => format!("{} KiB", bytes / KIB),
        bytes => format!("{bytes} B"),
    }
}

/// Measures all cases.
pub fn run(rounds: usize) -> Result<Figures> {
    let mut figures = Figures {
        processor: processor(),
        ..Figures::default()
    };
    for buffer in BUFFERS {
        for message in MESSAGES.into_iter().chain([buffer - HEADER]) {
            for mailbox in [true, false] {
                if message + HEADER <= buffer {
                    eprintln!("  {} bytes through a comm buffer of {buffer}", message);
                    figures.cases.push(case(buffer, message, mailbox, rounds)?);
                }
            }
        }
    }
    Ok(figures)
}

/// Makes so many calls with 16 bytes through a comm buffer of 4 KiB with a mailbox: the published crate's `communicate`, ours,
/// and `communicate_into`. For a profiler.
pub fn repeat(calls: usize) {
    let (len, message) = (4 * KIB, [7; 16]);
    let published = clients::published::communicator(len, message.len(), true);
    let ours = || clients::ours::communicator(len, message.len(), true);
    let clients: [&dyn Client; 3] = [
        &clients::published::Communicate(published),
        &clients::ours::Communicate(ours()),
        &Into(ours()),
    ];
    let mut out = [0; 16];
    for client in clients {
        for _ in 0..calls {
            black_box(client.call(black_box(&message), black_box(&mut out)));
        }
    }
}

/// Vendor, family and model, as Linux tells them.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.split(':').next().is_some_and(|found| found.trim() == name));
        line.and_then(|line| line.split(':').nth(1))
            .unwrap_or("unknown")
            .trim()
    };
    format!(
        "{}, family {}, model {}",
        field("vendor_id"),
        field("cpu family"),
        field("model")
    )
}

/// Measures one message through one comm buffer.
pub fn case(buffer: usize, len: usize, mailbox: bool, rounds: usize) -> Result<Case> {
    let ours = || clients::ours::communicator(buffer, len, mailbox);
    let floor = Floor::new(buffer, false);
    let floor_and_wipe = Floor::new(buffer, true);
    let published = clients::published::Communicate(clients::published::communicator(buffer, len, mailbox));
    let communicate = clients::ours::Communicate(ours());
    let (into, with) = (Into(ours()), With(ours()));
    let contestants: [&dyn Client; 6] = [&floor, &floor_and_wipe, &published, &communicate, &into, &with];

    let message: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
    let mut out = vec![0; len];
    let mut batch = |client: &dyn Client, calls: usize| {
        let start = Instant::now();
        for _ in 0..calls {
            black_box(client.call(black_box(&message), black_box(&mut out)));
        }
        start.elapsed().as_nanos() as f64 / calls as f64
    };
    let mut calls = Vec::new();
    for client in contestants {
        let once = batch(client, 20).max(1.0);
        calls.push((TURN_NS / once).clamp(4.0, 20_000.0) as usize);
    }
    let mut times = vec![Vec::new(); contestants.len()];
    for round in 0..rounds {
        for turn in 0..contestants.len() {
            let at = (turn + round) % contestants.len();
            times[at].push(batch(contestants[at], calls[at]));
        }
    }
    for client in [&contestants[0], &contestants[4], &contestants[5]] {
        out.fill(0);
        let returned = client.call(&message, &mut out);
        ensure!(
            returned == len && out == message,
            "an echo of {len} bytes came back changed"
        );
    }
    let ratio =
        |of: usize, to: usize| median(times[of].iter().zip(&times[to]).map(|(of, to)| of / to).collect());
    let ours = [3, 4, 5].map(|at| {
        let before = memory::allocations();
        contestants[at].call(&message, &mut out);
        let allocations = memory::allocations() - before;
        Ours {
            ns: median(times[at].clone()),
            to_published: ratio(at, 2),
            to_floor: ratio(at, 0),
            to_floor_and_wipe: ratio(at, 1),
            allocations,
        }
    });
    Ok(Case {
        buffer,
        message: len,
        mailbox,
        floor_ns: median(times[0].clone()),
        published_ns: median(times[2].clone()),
        ours: ours.into(),
    })
}

/// The median.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
