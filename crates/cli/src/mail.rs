//! Looks into mailboxes of durable pushes, sends dead letters again, and deletes letters, through a server's admin service.

use bothways::{
    CallError, Client,
    server::{AdminClient, LetterNamed, LettersAsked, MailboxesAsked},
    session::{DeadLetter, LetterView, MailboxView},
    store::Place,
};

use crate::{
    args::MailArgs,
    failure::{Exit, Failure},
    push::{connect, failed, table},
    term::{self, Out, Paint},
};

type Admin = AdminClient<Client>;

pub(crate) async fn run(args: MailArgs) -> Result<(), Failure> {
    let admin = connect(&args.admin).await?;
    match (&args.user, args.send_again, args.delete) {
        (Some(user), Some(place), _) => send_again(&args, &admin, user, place).await,
        (Some(user), None, Some(place)) => delete(&args, &admin, user, place).await,
        (Some(user), None, None) if args.dead => dead_letters(&args, &admin, user).await,
        (Some(user), None, None) => letters(&args, &admin, user).await,
        (None, ..) => mailboxes(&args, &admin).await,
    }
}

fn json(out: &Out, value: &impl serde::Serialize) -> Result<(), Failure> {
    out.line(&serde_json::to_string(value).expect("what is listed can be written as JSON"))
}

fn print_table<const N: usize>(out: &Out, rows: &[[String; N]]) -> Result<(), Failure> {
    let paint = Paint::stdout();
    for (number, line) in table(rows).iter().enumerate() {
        out.line(&if number == 0 { paint.bold(line) } else { line.clone() })?;
    }
    Ok(())
}

/// Up to so many, page by page: each is asked for with the last one so far and how many more are wanted. An empty page is
/// the end.
async fn listed<T>(
    args: &MailArgs,
    mut page: impl AsyncFnMut(Option<&T>, usize) -> Result<Vec<T>, CallError>,
) -> Result<Vec<T>, Failure> {
    let (max, mut listed) = (args.max as usize, Vec::new());
    while listed.len() < max {
        let more = page(listed.last(), max - listed.len()).await.map_err(|error| failed(&error))?;
        if more.is_empty() {
            break;
        }
        listed.extend(more);
    }
    Ok(listed)
}

async fn mailboxes(args: &MailArgs, admin: &Admin) -> Result<(), Failure> {
    let listed = listed(args, async |last: Option<&MailboxView>, max| {
        let after = last.map(|last| last.user.clone()).unwrap_or_default();
        admin.mailboxes(&MailboxesAsked { dead: args.dead, after, max }).await
    })
    .await?;
    let out = Out::new();
    if args.json {
        return json(&out, &listed);
    }
    if listed.is_empty() {
        return out.line(match args.dead {
            true => "no device has failed to handle a letter",
            false => "no mailbox has a letter: every device has handled what it got",
        });
    }
    let mut rows = vec![["USER", if args.dead { "DEAD" } else { "LETTERS" }].map(str::to_owned)];
    rows.extend(listed.iter().map(|view| [term::one_line(&view.user), view.letters.to_string()]));
    print_table(&out, &rows)
}

async fn letters(args: &MailArgs, admin: &Admin, user: &str) -> Result<(), Failure> {
    let mut devices = Vec::new();
    let listed = listed(args, async |last: Option<&LetterView>, max| {
        let after = last.map_or(0, |last| last.place.sequence);
        let page = admin.letters(&LettersAsked { user: user.to_owned(), after, max }).await?;
        devices = page.devices;
        Ok(page.letters)
    })
    .await?;
    let out = Out::new();
    if args.json {
        return json(&out, &serde_json::json!({ "letters": listed, "devices": devices }));
    }
    for (device, place) in &devices {
        out.line(&format!("device {}: {}", term::one_line(device), standing(*place, &listed)))?;
    }
    if devices.is_empty() {
        out.line("no device has read it yet")?;
    }
    if listed.is_empty() {
        return out.line("the mailbox is empty");
    }
    let mut rows = vec![["PLACE", "METHOD", "PUSHED", "BYTES"].map(str::to_owned)];
    rows.extend(
        listed.iter().map(|letter| {
            [letter.place.to_string(), method(letter), term::utc(letter.at_ms), letter.bytes.to_string()]
        }),
    );
    print_table(&out, &rows)
}

/// How far a device is with the letters that are listed.
fn standing(place: Place, listed: &[LetterView]) -> String {
    // A place of another life of the store says nothing of these.
    let is_behind = |letter: &&LetterView| letter.place.epoch != place.epoch || place < letter.place;
    match listed.iter().filter(is_behind).count() {
        0 => "has handled all of these".to_owned(),
        waiting => format!("has {waiting} of these to handle"),
    }
}

async fn dead_letters(args: &MailArgs, admin: &Admin, user: &str) -> Result<(), Failure> {
    let listed = listed(args, async |last: Option<&DeadLetter>, max| {
        let after = last.map_or(0, |last| last.letter.place.sequence);
        admin.dead_letters(&LettersAsked { user: user.to_owned(), after, max }).await
    })
    .await?;
    let out = Out::new();
    if args.json {
        return json(&out, &listed);
    }
    if listed.is_empty() {
        return out.line("no device of this user has failed to handle a letter");
    }
    let mut rows = vec![["PLACE", "METHOD", "GIVEN UP", "TRIES", "DEVICE"].map(str::to_owned)];
    rows.extend(listed.iter().map(|dead| {
        let (letter, device) = (&dead.letter, term::one_line(&dead.device));
        [letter.place.to_string(), method(letter), term::utc(dead.died_ms), dead.deliveries.to_string(), device]
    }));
    let paint = Paint::stdout();
    for (number, line) in table(&rows).iter().enumerate() {
        match number.checked_sub(1).and_then(|number| listed.get(number)) {
            None => out.line(&paint.bold(line))?,
            Some(dead) => {
                out.line(line)?;
                for line in term::wrap(&format!("    {}", term::one_line(&dead.why)), 8) {
                    out.line(&line)?;
                }
            }
        }
    }
    Ok(())
}

fn method(letter: &LetterView) -> String {
    match letter.service_path.is_empty() {
        true => "(cannot be read)".to_owned(),
        false => term::one_line(&format!("{}.{}", letter.service_path, letter.service_method)),
    }
}

async fn send_again(args: &MailArgs, admin: &Admin, user: &str, place: Place) -> Result<(), Failure> {
    let letter = LetterNamed { user: user.to_owned(), place, dead: true };
    let is_sent = admin.send_again(&letter).await.map_err(|error| failed(&error))?;
    told(args, "sent again", is_sent)
}

async fn delete(args: &MailArgs, admin: &Admin, user: &str, place: Place) -> Result<(), Failure> {
    let letter = LetterNamed { user: user.to_owned(), place, dead: args.dead };
    let is_deleted = admin.delete_letter(&letter).await.map_err(|error| failed(&error))?;
    told(args, "deleted", is_deleted)
}

/// What was done; an error if there is no such letter.
fn told(args: &MailArgs, what: &str, is_done: bool) -> Result<(), Failure> {
    if args.json {
        json(&Out::new(), &serde_json::json!({ "done": is_done }))?;
    } else if is_done {
        Out::new().line(&format!("{what} 1 letter"))?;
    }
    match is_done {
        true => Ok(()),
        false => Err(Failure::new(Exit::Peer, "there is no such letter")
            .hint("`bothways mail --user NAME`, with --dead for dead letters, tells their places")),
    }
}
