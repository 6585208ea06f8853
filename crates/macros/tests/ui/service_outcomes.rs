type Number = u8;

#[bothways::service]
trait Service {
    async fn alias(&self) -> Number;
}

fn main() {}
