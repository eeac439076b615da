//! A real slapd with a Carbonio-like tree, started for one test of the libraries and ended with it.
// What cannot be done here is the end of the test.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use ldap3::{Ldap, Mod};

use crate::{Stage, certs, slapd};

pub use crate::slapd::{ADMIN, Kind};

/// The server, its files, and the authority of its certificate.
pub struct LdapStage {
    server: slapd::Slapd,
    authority: certs::Authority,
    // The last to go: it is the folder of the others.
    stage: Stage,
}

impl LdapStage {
    /// Starts a server with the tree of `tree` and more entries.
    pub fn start(more: &str) -> Self {
        Self::start_as(Kind::default(), more)
    }

    /// The same, with its peculiarities.
    pub fn start_as(kind: Kind, more: &str) -> Self {
        let stage = Stage::new().unwrap();
        let authority = certs::Authority::new(&stage.dir("ca").unwrap()).unwrap();
        let pair = authority.server(&["localhost"]).unwrap();
        let kind = Kind {
            tls: Some(&pair),
            ..kind
        };
        let server = slapd::Slapd::start_as(&stage, "slapd", Some(&(tree() + more)), &kind).unwrap();
        Self {
            server,
            authority,
            stage,
        }
    }

    /// Starts the stopped server again, on the same ports and with the same content.
    pub fn resume(&mut self) {
        self.server.start_again().unwrap();
    }

    /// Puts another server in the place of the stopped one, with the tree of `tree` and these entries.
    pub fn replace(&mut self, more: &str) {
        self.server.start_anew(&(tree() + more)).unwrap();
    }

    /// Loses the stopped server's log of changes.
    pub fn lose_accesslog(&self) {
        self.server.lose_accesslog().unwrap();
    }

    /// Starts a copy that has what this server has now, and looks again in an hour.
    pub fn late_replica(&self) -> slapd::Slapd {
        self.server.late_replica(&self.stage, "replica").unwrap()
    }

    /// Ends the server as an operator does.
    pub fn stop(&mut self) {
        self.server.stop().unwrap();
    }

    /// Stops it in the middle of whatever it does.
    pub fn freeze(&self) {
        self.server.freeze().unwrap();
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.server.thaw().unwrap();
    }

    /// `ldap://…`
    pub fn url(&self) -> String {
        format!("ldap://localhost:{}", self.server.address().port())
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.server.address().into()
    }

    /// `ldaps://…`
    pub fn tls_url(&self) -> String {
        format!("ldaps://localhost:{}", self.server.tls_address().unwrap().port())
    }

    /// The authority that signed the server's certificate, as PEM.
    pub fn ca(&self) -> Vec<u8> {
        fs::read(self.authority.file()).unwrap()
    }

    /// A file beside the server's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.stage.path().join(name)
    }

    /// A connection that may change everything.
    pub async fn admin(&self) -> Ldap {
        self.server.administrator().await.unwrap()
    }
}

/// Puts these values in place of the old ones; none takes the attribute away.
pub async fn set(ldap: &mut Ldap, dn: &str, attribute: &str, values: &[&str]) {
    let values: HashSet<&str> = values.iter().copied().collect();
    ldap.modify(dn, vec![Mod::Replace(attribute, values)])
        .await
        .unwrap()
        .success()
        .unwrap();
}

/// Place of an account in the tree.
pub fn account_dn(address: &str) -> String {
    let (user, domain) = address.split_once('@').unwrap();
    format!("uid={user},ou=people,{}", domain_dn(domain))
}

/// Place of a domain in the tree.
pub fn domain_dn(domain: &str) -> String {
    format!("dc={}", domain.replace('.', ",dc="))
}

/// A domain `NAME.test` with some attributes (`attribute: value` lines).
pub fn domain(name: &str, attributes: &str) -> String {
    let dn = domain_dn(name);
    let label = name.split('.').next().unwrap();
    format!(
        "dn: {dn}\nobjectClass: dcObject\nobjectClass: organization\nobjectClass: zimbraDomain\ndc: {label}\no: {name}\n\
         zimbraDomainName: {name}\nzimbraId: domain-{name}\n{attributes}\n\
         dn: ou=people,{dn}\nobjectClass: organizationalUnit\nou: people\n\n"
    )
}

/// An account with some attributes.
pub fn account(address: &str, attributes: &str) -> String {
    let dn = account_dn(address);
    let user = address.split('@').next().unwrap();
    format!(
        "dn: {dn}\nobjectClass: inetOrgPerson\nobjectClass: zimbraAccount\nuid: {user}\ncn: {user}\nsn: {user}\n\
         zimbraId: ID-{address}\nzimbraMailDeliveryAddress: {address}\n{attributes}\n"
    )
}

/// The tree that every Carbonio has, with two mailbox servers and a few people.
fn tree() -> String {
    let mut ldif = String::from(
        "dn: cn=zimbra\nobjectClass: organizationalRole\ncn: zimbra\n\n\
         dn: cn=config,cn=zimbra\nobjectClass: zimbraGlobalConfig\ncn: config\n\
         zimbraReverseProxyMailMode: https\nzimbraDefaultDomainName: a.test\nzimbraReverseProxyConnectTimeout: 30s\n\n\
         dn: cn=servers,cn=zimbra\nobjectClass: organizationalRole\ncn: servers\n\n\
         dn: cn=cos,cn=zimbra\nobjectClass: organizationalRole\ncn: cos\n\n\
         dn: cn=default,cn=cos,cn=zimbra\nobjectClass: zimbraCOS\ncn: default\nzimbraId: cos-default\n\n\
         dn: cn=away,cn=cos,cn=zimbra\nobjectClass: zimbraCOS\ncn: away\nzimbraId: cos-away\n\
         zimbraReverseProxyUseExternalRoute: TRUE\n\n\
         dn: dc=test\nobjectClass: dcObject\nobjectClass: organization\ndc: test\no: test\n\n",
    );
    for (i, server) in ["store1.test", "store2.test"].iter().enumerate() {
        let _ = write!(
            ldif,
            "dn: cn={server},cn=servers,cn=zimbra\nobjectClass: zimbraServer\ncn: {server}\nzimbraId: server-{i}\n\
             zimbraServiceHostname: {server}\nzimbraServiceEnabled: mailbox\nzimbraImapSSLBindPort: 799{i}\n\n"
        );
    }
    ldif += &domain(
        "a.test",
        "zimbraVirtualHostname: mail.a.test\nzimbraVirtualIPAddress: 192.0.2.7\n",
    );
    ldif += &domain(
        "alias.test",
        "zimbraDomainType: alias\nzimbraDomainAliasTargetId: domain-a.test\n",
    );
    ldif += &account(
        "alice@a.test",
        "zimbraMailHost: store1.test\nzimbraMailAlias: al@a.test\nzimbraMailAlias: o'hara+x@a.test\n",
    );
    ldif += &account("bob@a.test", "zimbraMailHost: store2.test\n");
    ldif += "dn: uid=list,ou=people,dc=a,dc=test\nobjectClass: zimbraDistributionList\nuid: list\nzimbraId: list-1\n\
             zimbraMailDeliveryAddress: list@a.test\nzimbraMailHost: store1.test\n\n";
    ldif
}
