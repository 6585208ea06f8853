#[bothways::service]
trait Service {
    async fn find_user(&self) -> Result<(), String>;
    #[rpc(name = "FindUser")]
    async fn lookup(&self) -> Result<(), String>;
    async fn find_user_with(&self) -> Result<(), String>;
    async fn new(&self) -> Result<(), String>;
    async fn into_service(&self) -> Result<(), String>;
}

fn main() {}
