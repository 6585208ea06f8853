use bothways::Context;

#[bothways::service]
trait Service {
    fn not_async(&self) -> Result<(), String>;
    async fn no_self(args: u8) -> Result<(), String>;
    async fn by_value(self) -> Result<(), String>;
    async fn mutable(&mut self) -> Result<(), String>;
    async fn two(&self, a: u8, b: u8) -> Result<(), String>;
    async fn generic<T>(&self, args: T) -> Result<(), String>;
    async fn open(&self, args: impl Send) -> Result<(), String>;
    async fn no_result(&self, args: u8) -> u8;
    async fn mutable_argument(&self, args: &mut String) -> Result<(), String>;
    async fn lifetime(&self, args: &'static str) -> Result<(), String>;
    async fn list(&self) -> Vec<String>;
    async fn shared_context(&self, cx: &Context) -> Result<(), String>;
    async fn late_context(&self, args: u8, cx: &mut Context) -> Result<(), String>;
    async fn own(&self) -> Result<Box<Self>, String>;
    #[rpc(push)]
    async fn push(&self) -> Result<u8, String>;
    #[rpc(skip)]
    async fn skipped(&self);
    #[rpc(named = "Name")]
    async fn misspelt(&self);
    #[rpc(name = "")]
    async fn nameless(&self);
    const LIMIT: usize;
}

fn main() {}
