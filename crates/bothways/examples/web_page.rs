//! A server for a web page of one's own: `js/README.md` has the page. It says who it is, and gets a letter each second; the
//! receipts say when the page has handled them. The page may come from another server: its origin is named here.

use std::time::Duration;

use bothways::{
    Push, Server, Stage, Target,
    transport::{ListenOptions, ws::WsOrigins},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let origins = WsOrigins::same_host().and("http://127.0.0.1:8000");
    let server = Server::builder()
        .listen_options(ListenOptions::default().ws_origins(origins))
        .auth(|request| async move {
            // Look the token up in your own store. Here the token is the user's name.
            if request.token.is_empty() {
                return Err("a token is needed");
            }
            request.session().ok_or("the client has left")?.bind_user(&request.token);
            Ok(())
        })
        .function("Text", "Upper", |text: String| async move { Ok::<_, String>(text.to_uppercase()) })
        .build();
    let listening = server.listen("ws@127.0.0.1:8972").await?;
    println!("listening on {}", listening.address());

    for number in 1.. {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let receipt = server.push(&Target::user("ann"), &Push::of("Mail", "New", &format!("letter {number}"))?)?;
        tokio::spawn(async move {
            let counts = receipt.handled().await;
            if counts.targets() != 0 {
                println!("letter {number}: handled by {}", counts.at(Stage::Handled));
            }
        });
    }
    Ok(())
}
