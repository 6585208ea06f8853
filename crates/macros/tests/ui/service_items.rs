#[bothways::service]
struct Data;

#[bothways::service]
trait Generic<T> {
    async fn get(&self) -> Result<(), String>;
}

struct Wrapper<T>(T);

#[bothways::service]
impl<T> Wrapper<T> {
    async fn get(&self) -> Result<(), String> {
        Ok(())
    }
}

#[bothways::service]
impl Clone for Data {
    fn clone(&self) -> Self {
        Data
    }
}

#[bothways::service(named = "Other")]
trait Misspelt {
    async fn get(&self) -> Result<(), String>;
}

#[bothways::service]
impl Data {
    async fn two(&self, a: u8, b: u8) -> Result<(), String> {
        Ok(())
    }
}

fn main() {}
