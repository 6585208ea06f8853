#[bothways::message]
fn function() {}

#[bothways::message(rename_all = "camelCase")]
struct Container {
    a: u8,
}

#[bothways::message]
struct Attributes {
    #[message(name = "b")]
    a: u8,
}

#[bothways::message]
enum Variants {
    #[message(required)]
    A,
}

#[bothways::message(strict)]
struct Nameless(u8, u8);

#[bothways::message(strict)]
struct Flat {
    a: u8,
    #[serde(flatten)]
    rest: Container,
}

fn main() {}
