//! Prints allocations and sizes once, then measures calls.

use bench::{Client, Into, ours, theirs};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on, and the memory is from `System`.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const KIB: usize = 1024;
/// Bytes of the message and of the comm buffer.
const CASES: [(usize, usize); 4] = [
    (24, 64 * KIB),
    (24, KIB * KIB),
    (4 * KIB, 64 * KIB),
    (60 * KIB, 64 * KIB),
];

fn allocations(name: &str, client: &dyn Client, message: &[u8]) {
    let before = (ALLOCATIONS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    let len = black_box(client.call(black_box(message)));
    let count = ALLOCATIONS.load(Ordering::Relaxed) - before.0;
    let bytes = BYTES.load(Ordering::Relaxed) - before.1;
    println!("  {name:<28} {count:>2} allocations, {bytes:>7} bytes, response {len} bytes");
}

fn compare(criterion: &mut Criterion) {
    println!("sizes in bytes (ours, published 24.1.1):");
    for ((name, ours), (_, theirs)) in ours::sizes().into_iter().zip(theirs::sizes()) {
        println!("  {name:<28} {ours:>4} {theirs:>4}");
    }
    for (len, buffer) in CASES {
        let message = vec![0x5a; len];
        let mut out = vec![0; len];
        let ours = ours::client(buffer);
        let theirs = theirs::client(buffer);
        let into = Into::new(buffer, &mut out);
        let clients: [(&str, &dyn Client); 3] = [
            ("ours", &ours),
            ("ours, communicate_into", &into),
            ("published 24.1.1", &theirs),
        ];
        println!("{len} bytes through a comm buffer of {} KiB:", buffer / KIB);
        let mut group = criterion.benchmark_group(format!("{len} bytes, {} KiB buffer", buffer / KIB));
        group.throughput(Throughput::Bytes(len as u64));
        for (name, client) in clients {
            allocations(name, client, &message);
            group.bench_with_input(BenchmarkId::from_parameter(name), &message, |bencher, message| {
                bencher.iter(|| client.call(black_box(message)));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, compare);
criterion_main!(benches);
