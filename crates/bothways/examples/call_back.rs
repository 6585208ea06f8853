//! A server that calls its client back, and waits for the reply, before it answers the client's own call.
//!
//! `cargo run --example call_back`

use std::time::Duration;

use bothways::{CallError, CallOptions, Client, ClientOptions, Context, Router, Server, message, service};

#[message]
struct Transfer {
    to: String,
    amount: i64,
}

/// What the server offers.
#[service]
trait Bank {
    async fn transfer(&self, cx: &mut Context, order: Transfer) -> Result<String, String>;
}

/// What the client offers to the server.
#[service]
trait Customer {
    async fn confirm(&self, question: String) -> Result<bool, String>;
}

struct CarefulBank;

impl Bank for CarefulBank {
    async fn transfer(&self, cx: &mut Context, order: Transfer) -> Result<String, String> {
        let customer = CustomerClient::new(cx.connection().clone());
        let question = format!("really send {} to {}?", order.amount, order.to);
        let options = CallOptions::new().timeout(Duration::from_secs(1));
        match customer.confirm_with(&question, options).await {
            Ok(answer) if answer.value => Ok(format!("sent {} to {}", order.amount, order.to)),
            Ok(_) => Err("the customer said no".to_owned()),
            // A client that speaks plain rpcx cannot be asked.
            Err(CallError::NotSupported) => Err("please confirm at the counter".to_owned()),
            Err(error) => Err(format!("the customer could not be asked: {error}")),
        }
    }
}

struct Thrifty;

impl Customer for Thrifty {
    async fn confirm(&self, question: String) -> Result<bool, String> {
        let yes = !question.contains("1000");
        println!("the server asks: {question} -> {yes}");
        if question.contains("nobody") {
            // Longer than the server waits: it cancels, and this handler is dropped.
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        Ok(yes)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::builder().service(CarefulBank.into_service()).build();
    let listening = server.listen("127.0.0.1:0").await?;

    let handlers = Router::new().service(Thrifty.into_service());
    let asked = BankClient::new(Client::with_handlers(listening.address(), ClientOptions::new(), handlers).await?);
    let plain = BankClient::new(Client::connect(listening.address(), ClientOptions::new().negotiate(false)).await?);

    let order = |to: &str, amount| Transfer { to: to.to_owned(), amount };
    println!("{}", asked.transfer(&order("bob", 10)).await?);
    for (bank, order) in [(&asked, order("bob", 1000)), (&asked, order("nobody", 10)), (&plain, order("bob", 10))] {
        println!("{}", bank.transfer(&order).await.expect_err("these are refused"));
    }
    Ok(())
}
