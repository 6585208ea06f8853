//! A short run without a fuzzing engine: changed copies of the corpus, for a few seconds.
//!
//! Bytes drawn at random seldom get past a magic number and four lengths. The corpus does, and what
//! is nearly right finds more than what is wrong from the first byte.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// Runs `target` over changed copies of its corpus, for `BOTHWAYS_FUZZ_SECONDS` (5 if it is not set),
/// from the seed `BOTHWAYS_FUZZ_SEED` (the time if it is not set). An input that fails is written
/// beside the corpus, into `crashes`, where every later run begins.
///
/// Does nothing under a fuzzing engine, which changes inputs itself and knows better how.
pub fn short_run(name: &str, target: fn(&[u8])) {
    if cfg!(fuzzing) || env::var_os("CARGO_BOLERO_SELECT").is_some() {
        return;
    }
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    let corpus: Vec<Vec<u8>> =
        files(&home.join("corpus")).iter().map(|file| fs::read(file).expect("readable")).collect();
    assert!(!corpus.is_empty(), "{name} has no corpus");

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    let seed = number("BOTHWAYS_FUZZ_SEED").unwrap_or(now);
    let seconds = number("BOTHWAYS_FUZZ_SECONDS").unwrap_or(5);
    let (mut random, mut runs, start) = (Random(seed | 1), 0_u64, Instant::now());

    while start.elapsed() < Duration::from_secs(seconds) {
        // Runs are short: the clock is read once for a hundred.
        for _ in 0..100 {
            let input = changed(&corpus, &mut random);
            let on_failure = OnFailure { home: &home, input: &input, seed };
            target(&input);
            std::mem::forget(on_failure);
            runs += 1;
        }
    }

    println!("{name}: {runs} changed inputs in {seconds} s from seed {seed}");
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    files
}

/// Dropped only by a panic of the target: keeps the input.
struct OnFailure<'a> {
    home: &'a Path,
    input: &'a [u8],
    seed: u64,
}

impl Drop for OnFailure<'_> {
    fn drop(&mut self) {
        let folder = self.home.join("crashes");
        let file = folder.join(format!("{:016x}", self.seed));
        let kept = fs::create_dir_all(&folder).and_then(|()| fs::write(&file, self.input));
        eprintln!("the input of {} bytes is in {}: {kept:?}", self.input.len(), file.display());
    }
}

/// Numbers that lengths, flags and counters trip over.
const EDGES: [u32; 12] = [0, 1, 3, 4, 7, 8, 15, 16, 255, 256, 0x7fff_ffff, u32::MAX];

/// A copy of some input with one to six changes.
fn changed(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();

    for _ in 0..=random.below(6) {
        let at = random.below(input.len() + 1);
        let len = random.below(input.len() - at + 1).min(64);

        match random.below(9) {
            0 | 1 if at < input.len() => input[at] ^= 1 << random.below(8),
            2 if at < input.len() => input[at] = random.next() as u8,
            3 | 4 if at + 4 <= input.len() => {
                // Beside an edge, or beside what stands there.
                let stood = u32::from_be_bytes(*input[at..].first_chunk().expect("four bytes are there"));
                let number = if random.below(2) == 0 { stood } else { EDGES[random.below(EDGES.len())] };
                let number = number.wrapping_add(random.below(5) as u32).wrapping_sub(2);
                input[at..at + 4].copy_from_slice(&number.to_be_bytes());
            }
            5 => drop(input.drain(at..at + len)),
            6 => {
                let again = input[at..at + len].to_vec();
                input.splice(at..at, again);
            }
            7 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            _ => input.truncate(at),
        }
    }

    input.truncate(64 << 10);
    input
}

/// Xorshift: enough to choose by, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}
