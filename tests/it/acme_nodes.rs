//! Certificates from an authority where nodes know of each other: one of them orders, all answer what the authority
//! asks, and one that dies is replaced.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portico_tests::acme_authority::{AcmeAuthority, ISSUER, Resource, ValidationPorts};
use portico_tests::config::Value;
use portico_tests::redis::Redis;
use portico_tests::slapd::Slapd;
use portico_tests::town::{Town, people};
use portico_tests::{Stage, until};

use crate::acme::{DOMAIN, MAIL, PATIENCE, acme_section, names_of, shown};
use crate::admin::{done, json};
use crate::moves::prov;
use crate::shared_state::{NAMES, Together, at};

/// A node that has died is replaced within this time.
const REPLACED: Duration = Duration::from_secs(30);

/// Two nodes of one LDAP tree and one engine, and the authority that both may ask.
struct Pair {
    together: Together,
    authority: AcmeAuthority,
    slapd: Slapd,
    redis: Redis,
    /// Which of them orders, and the other one.
    orders: usize,
    other: usize,
}

impl Pair {
    /// Both answer by these challenges; the domain is not marked yet. The authority asks the node that does not order.
    fn start(stage: &Stage, challenges: &str, is_own_key: bool) -> Result<Self> {
        let town = Town::build(stage, people())?;
        let mut directory = Together::directory(&town, 2);
        let entry = directory.domain(DOMAIN);
        entry.insert("zimbraVirtualHostname".into(), Value::List(vec![MAIL.to_owned()]));
        let (slapd, redis) = (Slapd::start(stage, "slapd", &directory)?, Redis::start(stage)?);
        let ports = ValidationPorts { http: 1, tls: 1 };
        let authority = AcmeAuthority::start(stage, &town.ca, ports)?;
        let section = |node: &str| {
            let name = if is_own_key { node } else { "shared" };
            let key_file = stage.path().join(format!("{name}.acme.key"));
            acme_section(
                &authority.directory_url(),
                &town,
                &key_file,
                &format!(", challenges: {challenges}"),
            )
        };
        let sections = NAMES.map(section);
        let together = Together::start(stage, town, (&directory, 2), &at(&redis), |node| {
            node.directory = slapd.source("200ms");
            node.directory[1] = format!("snapshot: {}.snapshot", node.name);
            let at = NAMES.iter().position(|name| *name == node.name).unwrap_or_default();
            node.more.push(sections[at].clone());
        })?;
        together.all_see_each_other()?;
        let mut pair = Self {
            together,
            authority,
            slapd,
            redis,
            orders: 0,
            other: 1,
        };
        pair.orders = pair.ordering(&[0, 1])?;
        pair.other = 1 - pair.orders;
        let front = pair.together.fronts[pair.other];
        pair.authority.behave(|behaviour| {
            behaviour.ports = ValidationPorts {
                http: front.http.port(),
                tls: front.https.port(),
            };
        });
        Ok(pair)
    }

    /// The node that orders, as these nodes say.
    fn ordering(&self, asked: &[usize]) -> Result<usize> {
        until("a node that orders", PATIENCE, || {
            let mut said = Vec::new();
            for node in asked {
                let answer = json(&self.together.nodes[*node], &["certificates"])?;
                said.push(answer["ordered_by"].as_str().map(str::to_owned));
            }
            let first = said[0].clone();
            let at = first.filter(|_| said.iter().all(|name| *name == said[0]));
            Ok(at.and_then(|at| NAMES.iter().position(|name| **name == at)))
        })
    }

    fn mark(&self, at: usize) -> Result<()> {
        prov(&self.together.nodes[at], &["md", DOMAIN, "porticoAcme", "on"])
    }

    fn served(&self, nodes: &[usize]) -> Result<()> {
        for node in nodes {
            until(&format!("a certificate at node {node}"), PATIENCE, || {
                let certificate = shown(self.together.fronts[*node].imaps, MAIL)?;
                let is_its = format!("{:?}", certificate.issuer_name()).contains(ISSUER);
                Ok((is_its && names_of(&certificate).contains(MAIL)).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Orders that the authority has begun.
    fn orders(&self) -> usize {
        let asked = self.authority.asked().into_iter();
        asked
            .filter(|asked| asked.resource == Resource::NewOrder && asked.answer.starts_with('2'))
            .count()
    }

    fn until_challenged(&self) -> Result<()> {
        until("an open challenge", PATIENCE, || {
            Ok((self.authority.count(Resource::Challenge) > 0).then_some(()))
        })
    }

    fn end(self) -> Result<()> {
        let violations = self.authority.violations();
        ensure!(violations.is_empty(), "no client may do this: {violations:?}");
        drop(self.slapd);
        Ok(())
    }
}

#[test]
fn one_node_orders_and_the_authority_may_ask_the_other() -> Result<()> {
    for challenges in ["[http-01]", "[tls-alpn-01]"] {
        Stage::run(|stage| {
            let pair = Pair::start(stage, challenges, false)?;
            pair.mark(pair.other)?;
            pair.served(&[0, 1])?;
            assert_eq!((pair.orders(), pair.authority.issued().len()), (1, 1));
            assert_eq!(pair.authority.count(Resource::NewAccount), 1, "one account is enough");
            // Behind the order nothing is open.
            until("no challenge in the engine", PATIENCE, || {
                Ok((pair.redis.number("HLEN {portico}:acme:challenges")? == 0).then_some(()))
            })?;
            // Which node is told to renew does not matter.
            let other = &pair.together.nodes[pair.other];
            let renewed = json(other, &["certificate", "renew", DOMAIN])?;
            ensure!(
                renewed["state"] == "issued" && renewed["node"] == NAMES[pair.orders],
                "{renewed}"
            );
            assert_eq!((pair.orders(), pair.authority.issued().len()), (2, 2));
            pair.end()
        })
        .with_context(|| challenges.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_node_that_is_killed_in_the_middle_of_an_order_is_replaced() -> Result<()> {
    Stage::run(|stage| {
        let mut pair = Pair::start(stage, "[http-01]", false)?;
        pair.authority.behave(|behaviour| behaviour.looks_later = true);
        pair.mark(pair.other)?;
        pair.until_challenged()?;
        let (killed, other) = (pair.orders, pair.other);
        pair.together.nodes[killed].kill();
        let begun = Instant::now();
        pair.authority.behave(|behaviour| behaviour.looks_later = false);
        pair.served(&[other])?;
        println!("the certificate came {:.1?} after its node was killed", begun.elapsed());
        ensure!(begun.elapsed() < REPLACED, "{:?}", begun.elapsed());
        assert_eq!(pair.ordering(&[other])?, other);
        // One that comes back orders nothing again.
        let before = pair.orders();
        pair.together.nodes[killed].start_again("info")?;
        pair.together.all_see_each_other()?;
        pair.served(&[0, 1])?;
        assert_eq!((pair.ordering(&[0, 1])?, pair.orders()), (other, before));
        pair.end()
    })
}

#[test]
fn without_the_engine_nothing_is_ordered_unless_an_administrator_wants_it() -> Result<()> {
    Stage::run(|stage| {
        let mut pair = Pair::start(stage, "[http-01]", false)?;
        pair.redis.kill();
        (0..2).try_for_each(|at| pair.together.is_alone(at))?;
        // The turn that the node has taken ends.
        until("nobody's turn", PATIENCE, || {
            let mut said = Vec::new();
            for node in &pair.together.nodes {
                said.push(json(node, &["certificates"])?["ordered_by"].is_null());
            }
            Ok(said.iter().all(|is_nobody| *is_nobody).then_some(()))
        })?;
        pair.mark(0)?;
        until("both to know of the domain", PATIENCE, || {
            let mut known = true;
            for node in &pair.together.nodes {
                known &= json(node, &["certificates"])?["orders"].to_string().contains(DOMAIN);
            }
            Ok(known.then_some(()))
        })?;
        assert_eq!(pair.orders(), 0);
        // The authority asks this node.
        let text = done(&pair.together.nodes[pair.other], &["certificate", "request", DOMAIN])?;
        ensure!(text.contains("a new certificate is in force"), "{text}");
        pair.served(&[0, 1])?;
        assert_eq!(pair.orders(), 1);
        pair.redis.start_again()?;
        pair.together.all_see_each_other()?;
        pair.ordering(&[0, 1])?;
        assert_eq!(pair.orders(), 1);
        pair.end()
    })
}

/// With what the engine says nobody gets a certificate who does not have the account's key.
#[test]
fn a_challenge_of_another_account_is_not_answered_and_said() -> Result<()> {
    Stage::run(|stage| {
        let pair = Pair::start(stage, "[http-01]", true)?;
        pair.mark(pair.other)?;
        let output = || pair.together.nodes[pair.orders].output();
        let words = format!(
            "challenges of the ACME authority are not answered by {}: its account key is another one",
            NAMES[pair.other]
        );
        until(&words, PATIENCE, || Ok(output().contains(&words).then_some(())))?;
        until("the refusal", PATIENCE, || {
            Ok(output()
                .contains(&format!("{MAIL} gets no certificate: "))
                .then_some(()))
        })?;
        pair.end()
    })
}
