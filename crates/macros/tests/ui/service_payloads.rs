use std::{collections::{HashMap, VecDeque}, time::{Duration, SystemTime}};

type Photo = Vec<u8>;

#[bothways::message]
struct Album {
    photos: Vec<Photo>,
}

#[bothways::service]
trait Service {
    async fn upload(&self, data: Vec<u8>) -> Result<(), String>;
    async fn alias(&self, data: Photo) -> Result<(), String>;
    async fn album(&self, data: Album) -> Result<(), String>;
    async fn now(&self) -> Result<SystemTime, String>;
    async fn queue(&self) -> Result<VecDeque<u8>, String>;
    async fn all(&self, of: HashMap<String, Duration>) -> Result<(), String>;
    #[rpc(plain)]
    async fn plain(&self, data: Vec<u8>) -> Result<SystemTime, String>;
    async fn right(&self, data: bytes::Bytes) -> Result<Option<bytes::Bytes>, String>;
}

fn main() {}
