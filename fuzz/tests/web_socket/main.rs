//! Fuzz target; what it checks is `bothways_fuzz::web_socket`.

#[global_allocator]
static ALLOCATOR: bothways_fuzz::PeakAlloc = bothways_fuzz::PeakAlloc;

fn main() {
    bolero::check!().with_max_len(8 << 10).for_each(|bytes: &[u8]| bothways_fuzz::web_socket(bytes));
    bothways_fuzz::short_run("web_socket", bothways_fuzz::web_socket);
}
