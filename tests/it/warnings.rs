//! What `check` and changes say without being asked: files with secrets that everybody may read, attributes that were
//! set to protect and do nothing here.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
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

#[test]
fn open_files_and_vain_attributes_are_told_of() -> Result<()> {
    Stage::run(|stage| {
        let town = Town::build(stage, people())?;
        let (mut node, mut directory) = (town.node(), town.directory());
        let token = stage.file("admin.token", "0123456789abcdef-token")?;
        let other = town.ca.server(&["mail.d.example"])?;
        node.admin.push(format!("token_file: {}", quote(&token)));
        directory
            .domain("d.example")
            .insert("zimbraSSLCertificate".into(), other.certificate_file.as_path().into());
        directory
            .domain("d.example")
            .insert("zimbraSSLPrivateKey".into(), other.key_file.as_path().into());
        directory
            .config("zimbraReverseProxyIPLoginLimit", "20")
            .config("zimbraReverseProxyUserLoginLimit", "0")
            .config("zimbraReverseProxyPop3SaslGssapiEnabled", "TRUE");
        open(&token, 0o600)?;
        let portico = Portico::start(stage, &node, &directory, "info")?;
        let yaml = portico.dir().join("directory.yaml");
        let secrets = [&yaml, &token, &other.key_file, &town.default.key_file];

        let quiet = printed(&portico, &["check"])?;
        ensure!(
            !quiet.contains("everybody") && !quiet.contains("UserLoginLimit"),
            "{quiet}"
        );
        for vain in [
            "zimbraReverseProxyIPLoginLimit: warning: protects nothing here: Logins are not counted",
            "zimbraReverseProxyPop3SaslGssapiEnabled: warning: protects nothing here: Logins with Kerberos",
        ] {
            ensure!(
                quiet.contains(vain) && portico.output().contains(vain),
                "{vain}: {quiet}"
            );
        }
        for path in secrets {
            open(path, OPEN)?;
            let said = printed(&portico, &["check"])?;
            let warning = format!("{} can be read by everybody", path.display());
            ensure!(said.contains(&warning), "{warning}: {said}");
            open(path, 0o640)?;
        }

        open(&yaml, OPEN)?;
        // The first name names its files.
        let other = town.ca.server(&["other.d.example", "mail.d.example"])?;
        let key = [
            ("zimbraSSLCertificate", &other.certificate),
            ("zimbraSSLPrivateKey", &other.key),
        ];
        let change =
            |name: &str, value: &str| printed(&portico, &["prov", "-l", "modifyDomain", "d.example", name, value]);
        let said = change("zimbraVirtualHostname", "mail.d.example")?;
        ensure!(!said.contains("everybody"), "{said}");
        open(&yaml, OPEN)?;
        let [(certificate, pem), (secret, key)] = key;
        let said = printed(
            &portico,
            &["prov", "-l", "modifyDomain", "d.example", certificate, pem, secret, key],
        )?;
        ensure!(said.contains("WARNING: everybody could read"), "{said}");
        let mode = std::fs::metadata(&yaml)?.permissions().mode() & 0o777;
        ensure!(mode == 0o640, "{mode:o}");
        ensure!(
            printed(&portico, &["prov", "-l", "getServer", NODE])
                .context("it is good still")?
                .is_empty()
        );
        Ok(())
    })
}
