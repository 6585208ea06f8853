use std::{collections::HashMap, time::{Duration, SystemTime}};

#[bothways::service]
trait Service {
    async fn upload(&self, data: Vec<u8>) -> Result<(), String>;
    async fn now(&self) -> Result<SystemTime, String>;
    async fn all(&self, of: HashMap<String, Duration>) -> Result<(), String>;
    #[rpc(plain)]
    async fn plain(&self, data: Vec<u8>) -> Result<SystemTime, String>;
    async fn right(&self, data: bytes::Bytes) -> Result<Option<bytes::Bytes>, String>;
}

fn main() {}
