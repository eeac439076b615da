//! A page to log in and read mail, for the demo: the mail is that of the Dovecot server beside it.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::http::{Request, Stream, respond};
use super::{Account, auth_token};

/// The page: one form, one list, no library.
const PAGE: &str = include_str!("webmail.html");

/// Answers what belongs to the page; `false` for anything else.
pub(super) fn answer(
    server: &str,
    accounts: &[Account],
    mail: &Path,
    request: &Request,
    out: &mut dyn Stream,
) -> Result<bool> {
    let wants_page = request
        .header("accept")
        .is_some_and(|accept| accept.contains("text/html"));
    match request.path() {
        "/" if wants_page => {
            respond(
                out,
                200,
                &[("Content-Type", "text/html; charset=utf-8")],
                PAGE.as_bytes(),
            )?;
        }
        "/home/~/mails.json" => {
            let Some(account) = logged_in(accounts, request) else {
                respond(out, 401, &[], b"{}")?;
                return Ok(true);
            };
            let text = json!({"server": server, "account": account.name, "mails": mails(&mail.join(&account.name))});
            respond(
                out,
                200,
                &[("Content-Type", "application/json")],
                text.to_string().as_bytes(),
            )?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn logged_in<'a>(accounts: &'a [Account], request: &Request) -> Option<&'a Account> {
    let cookies = request.header("cookie")?;
    accounts
        .iter()
        .find(|account| cookies.contains(&format!("ZM_AUTH_TOKEN={}", auth_token(&account.id))))
}

/// The mails of a Maildir, by name of their files.
fn mails(maildir: &Path) -> Vec<Value> {
    let folders = ["new", "cur"].map(|folder| std::fs::read_dir(maildir.join(folder)));
    let files = folders.into_iter().flatten().flatten().flatten();
    let mut paths: Vec<_> = files.map(|file| file.path()).collect();
    paths.sort();
    paths
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| mail(&text))
        .collect()
}

fn mail(text: &str) -> Value {
    let text = text.replace("\r\n", "\n");
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    let field = |name: &str| {
        let start = format!("{name}: ");
        head.lines()
            .find_map(|line| line.strip_prefix(&start))
            .unwrap_or_default()
            .to_owned()
    };
    json!({"from": field("From"), "subject": field("Subject"), "date": field("Date"), "text": body})
}
