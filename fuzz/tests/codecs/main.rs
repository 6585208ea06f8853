//! Fuzz target; what it checks is `bothways_fuzz::codecs`.

#[global_allocator]
static ALLOCATOR: bothways_fuzz::PeakAlloc = bothways_fuzz::PeakAlloc;

fn main() {
    bolero::check!().with_max_len(4 << 10).for_each(|bytes: &[u8]| bothways_fuzz::codecs(bytes));
    bothways_fuzz::short_run("codecs", bothways_fuzz::codecs);
}
