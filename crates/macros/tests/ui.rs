//! What must not compile, and what is said then. Only our own words: the compiler's change with it.

#[test]
fn errors_point_at_what_is_wrong_and_say_what_to_write() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
