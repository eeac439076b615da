//! What `check` and changes say without being asked: files with secrets that everybody may read, attributes that were
//! set to protect and do nothing here.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use portico_tests::Stage;
use portico_tests::config::quote;
use portico_tests::portico::{Portico, binary};
use portico_tests::town::{NODE, Town, people};

/// Who may read a file that should be secret.
const OPEN: u32 = 0o644;

/// What the program prints on standard error.
fn printed(portico: &Portico, args: &[&str]) -> Result<String> {
    let conf = portico.dir().join("portico.yaml");
    let out = Command::new(binary()?).arg("-c").arg(conf).args(args).output()?;
    let errors = String::from_utf8(out.stderr)?;
    ensure!(out.status.success(), "{args:?}: {errors}");
    Ok(errors)
}

fn open(path: &Path, mode: u32) -> Result<()> {
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

/// A node whose directory has values that protect nothing, and whose files are private.
struct Warned {
    portico: Portico,
    town: Town,
    yaml: PathBuf,
    /// All files with secrets.
    secrets: [PathBuf; 4],
}

fn play(test: impl FnOnce(&Warned) -> Result<()>) -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let (mut node, mut directory) = (town.node(), town.directory());
        let token = stage.file("admin.token", "0123456789abcdef-token")?;
        let other = town.ca.server(&["mail.d.example"])?;
        node.admin.push(format!("token_file: {}", quote(&token)));
        let domain = directory.domain("d.example");
        domain.insert("zimbraSSLCertificate".into(), other.certificate_file.as_path().into());
        domain.insert("zimbraSSLPrivateKey".into(), other.key_file.as_path().into());
        directory
            .config("zimbraReverseProxyIPLoginLimit", "20")
            .config("zimbraReverseProxyUserLoginLimit", "0")
            .config("zimbraReverseProxyPop3SaslGssapiEnabled", "TRUE");
        open(&token, 0o600)?;
        let portico = Portico::start(stage, &node, &directory, "info")?;
        let yaml = portico.dir().join("directory.yaml");
        let secrets = [yaml.clone(), token, other.key_file, town.default.key_file.clone()];
        test(&Warned {
            portico,
            town,
            yaml,
            secrets,
        })
    })
}

#[test]
fn attributes_that_protect_nothing_are_warned_of() -> Result<()> {
    play(|warned| {
        let said = printed(&warned.portico, &["check"])?;
        ensure!(
            !said.contains("everybody") && !said.contains("UserLoginLimit"),
            "{said}"
        );
        for warning in [
            "zimbraReverseProxyIPLoginLimit: warning: counts failed logins of all protocols here, not connections",
            "zimbraReverseProxyPop3SaslGssapiEnabled: warning: protects nothing here: Logins with Kerberos",
        ] {
            let logged = warned.portico.output().contains(warning);
            ensure!(said.contains(warning) && logged, "{warning}: {said}");
        }
        Ok(())
    })
}

#[test]
fn secrets_that_everybody_may_read_are_warned_of() -> Result<()> {
    play(|warned| {
        for path in &warned.secrets {
            open(path, OPEN)?;
            let said = printed(&warned.portico, &["check"])?;
            let warning = format!("{} can be read by everybody", path.display());
            ensure!(said.contains(&warning), "{warning}: {said}");
            open(path, 0o640)?;
        }
        Ok(())
    })
}

/// `prov` closes a file that everybody may read when it puts a secret into it.
#[test]
fn prov_closes_a_file_with_a_secret() -> Result<()> {
    play(|warned| {
        let prov = |args: &[&str]| printed(&warned.portico, &[&["prov", "-l"], args].concat());
        open(&warned.yaml, OPEN)?;
        let said = prov(&["modifyDomain", "d.example", "zimbraVirtualHostname", "mail.d.example"])?;
        ensure!(!said.contains("everybody"), "{said}");

        open(&warned.yaml, OPEN)?;
        // The first name names its files.
        let other = warned.town.ca.server(&["other.d.example", "mail.d.example"])?;
        let pair = [
            "zimbraSSLCertificate",
            &other.certificate,
            "zimbraSSLPrivateKey",
            &other.key,
        ];
        let said = prov(&[&["modifyDomain", "d.example"], &pair[..]].concat())?;
        ensure!(said.contains("WARNING: everybody could read"), "{said}");
        let mode = std::fs::metadata(&warned.yaml)?.permissions().mode() & 0o777;
        ensure!(mode == 0o640, "{mode:o}");
        let said = prov(&["getServer", NODE]).context("it is good still")?;
        ensure!(said.is_empty(), "{said}");
        Ok(())
    })
}
