//! Writes tonic's client and server of the service, from a description in place of a `.proto` file, so
//! that no Protocol Buffers compiler is needed.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let method = |name: &str, route: &str, message: &str| {
        let path = "tonic_prost::ProstCodec";
        Method::builder().name(name).route_name(route).input_type(message).output_type(message).codec_path(path).build()
    };
    let service = Service::builder()
        .package("bench")
        .name("Bench")
        .method(method("echo", "Echo", "crate::Payload"))
        .method(method("record", "Record", "crate::Record"))
        .build();
    Builder::new().compile(&[service]);
}
