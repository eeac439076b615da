//! Uses the packages in a Debian folder, as `scripts/check-packages` makes them: installed, started, replaced by a
//! higher version under a session that is open, removed.
//!
//! `packages ROOT KIND INIT OLD NEW`: the folder, `deb` or `rpm`, `systemd` or `none`, and the two packages. The folder
//! is used up. NEW differs from OLD in its program and in the node file that it brings.
//!
//! With `systemd` a real one runs as the first process in the folder, with process and mount spaces of its own; with
//! `none` there is only a shell.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use portico_tests::child::Child;
use portico_tests::town::{FRONT, Town, people};
use portico_tests::wire::Wire;
use portico_tests::{Stage, until};

const SOON: Duration = Duration::from_secs(40);
/// A line that NEW has in its node file, and no node has that was configured before.
const OF_NEW: &str = "# of the new package";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [root, kind, init, old, new] = &words[..] else {
        bail!("usage: packages ROOT deb|rpm systemd|none OLD NEW");
    };
    let kind = match kind.as_str() {
        "deb" => Kind::Deb,
        "rpm" => Kind::Rpm,
        other => bail!("{other}? There are deb and rpm"),
    };
    let init = match init.as_str() {
        "systemd" => Init::Systemd,
        "none" => Init::None,
        other => bail!("{other}? There are systemd and none"),
    };
    Stage::run(|stage| {
        let machine = Machine::start(stage, Path::new(root), kind, init)?;
        let town = Town::build(stage, people())?;
        let played = play(&machine, &town, Path::new(old), Path::new(new));
        if played.is_err() && init == Init::Systemd {
            let journal = machine.try_run("journalctl", &["--no-pager", "--unit=portico"])?;
            eprintln!("{}", String::from_utf8_lossy(&journal.stdout));
        }
        played
    })
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Deb,
    Rpm,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Init {
    Systemd,
    None,
}

fn play(machine: &Machine, town: &Town, old: &Path, new: &Path) -> Result<()> {
    step("installs; nothing runs yet");
    machine.install(old)?;
    is_installed(machine)?;
    is_from_the_program(machine)?;

    step("is configured, and started");
    configure(machine, town)?;
    machine.start_node()?;
    let tls = town.ca.connector(&[])?;
    let login = |who: &str| {
        let person = town.person(who)?;
        let mut wire = Wire::tls(town.endpoints.imaps, &tls, FRONT)?;
        let greeting = wire.line()?;
        ensure!(greeting.starts_with("* OK"), "{greeting}");
        wire.imap_ok(&format!("a1 LOGIN {} {}", person.name, person.password()))?;
        anyhow::Ok(wire)
    };
    let mut alice = login("alice")?;
    let first = machine.main_process()?;

    step("a higher version takes over from it; a session lives on in the old process");
    machine.install(new)?;
    let second = machine.main_process()?;
    ensure!(second != first, "process {first} is still the main process");
    alice.imap_ok("a2 NOOP")?;
    let mut bob = login("bob")?;
    let sessions = machine.output("portico", &["sessions"])?;
    ensure!(
        sessions.contains("bob@a.example") && !sessions.contains("alice@a.example"),
        "sessions of the new process:\n{sessions}"
    );
    ensure!(machine.runs(first)?, "the old process is gone");
    alice.imap_ok("a3 LOGOUT")?;
    drop(alice);
    until("the old process to end", SOON, || {
        Ok((!machine.runs(first)?).then_some(()))
    })?;

    step("its configuration is kept, that of the package lies beside it");
    let kept = machine.read("etc/portico/portico.yaml")?;
    ensure!(kept.contains(&town.endpoints.imaps.to_string()) && !kept.contains(OF_NEW));
    let beside = match machine.kind {
        Kind::Deb => "etc/portico/portico.yaml.dpkg-dist",
        Kind::Rpm => "etc/portico/portico.yaml.rpmnew",
    };
    ensure!(machine.read(beside)?.contains(OF_NEW), "{beside} is of another package");

    step("the same once more changes nothing");
    machine.install(new)?;
    ensure!(machine.main_process()? == second, "another process has taken over");

    step("a new program that does not start leaves the old one serving, and says so");
    let node = machine.root.join("etc/portico/portico.yaml");
    std::fs::write(&node, format!("{kept}\nnonsense: true\n"))?;
    let said = machine.install(old)?;
    ensure!(said.contains(&format!("process {second} serves on")), "{said}");
    ensure!(machine.main_process()? == second);
    bob.imap_ok("b1 NOOP")?;
    std::fs::write(&node, &kept)?;

    step("is removed");
    machine.remove()?;
    until(
        "its process to end",
        SOON,
        || Ok((!machine.runs(second)?).then_some(())),
    )?;
    ensure!(!machine.root.join("usr/bin/portico").exists());
    if machine.kind == Kind::Deb {
        ensure!(machine.read("etc/portico/portico.yaml")? == kept);
        machine.run("dpkg", &["--purge", "portico"])?;
    } else {
        ensure!(machine.read("etc/portico/portico.yaml.rpmsave")? == kept);
    }
    is_gone(machine)
}

/// Owners, folders, units.
fn is_installed(machine: &Machine) -> Result<()> {
    let passwd = machine.read("etc/passwd")?;
    let user = passwd.lines().find(|line| line.starts_with("portico:"));
    let fields: Vec<&str> = user.context("no user portico")?.split(':').collect();
    ensure!(fields[6].ends_with("nologin"), "{fields:?}");
    let (user, group): (u32, u32) = (fields[2].parse()?, fields[3].parse()?);
    for (path, owner, mode) in [
        ("etc/portico", (0, group), 0o750),
        ("etc/portico/portico.yaml", (0, group), 0o640),
        ("etc/portico/directory.yaml", (0, group), 0o640),
        ("var/log/portico", (user, group), 0o750),
        ("var/lib/portico", (user, group), 0o750),
        ("usr/bin/portico", (0, 0), 0o755),
    ] {
        let found = std::fs::metadata(machine.root.join(path)).with_context(|| path.to_owned())?;
        let is = ((found.uid(), found.gid()), found.mode() & 0o7777);
        ensure!(is == (owner, mode), "{path}: {is:?}");
    }
    // The example names certificates that are not there; that is all there is to say against it.
    let said = machine.try_run("portico", &["check"])?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(
        said.lines()
            .all(|line| line.contains("default.crt") || line.contains("default.key")),
        "{said}"
    );
    if machine.init == Init::Systemd {
        let units = ["portico.service", "portico.socket"];
        for unit in units {
            let state = machine.try_run("systemctl", &["is-enabled", unit])?;
            ensure!(state.stdout == b"disabled\n", "{unit} is {state:?}");
        }
        let out = machine.try_run("systemd-analyze", &["verify", "--man=no", units[0], units[1]])?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!said.contains("portico"), "{said}");
    }
    Ok(())
}

/// Man pages and completions are those that the program prints.
fn is_from_the_program(machine: &Machine) -> Result<()> {
    machine.run("portico", &["man", "/root/man"])?;
    let mut pages = 0;
    for page in std::fs::read_dir(machine.root.join("root/man"))? {
        let name = page?.file_name().into_string().ok().context("a name")?;
        let installed = machine.output("gzip", &["-dc", &format!("/usr/share/man/man1/{name}.gz")])?;
        ensure!(installed == machine.read(&format!("root/man/{name}"))?, "{name}");
        pages += 1;
    }
    ensure!(pages > 10, "{pages} pages");
    let zsh = match machine.kind {
        Kind::Deb => "usr/share/zsh/vendor-completions/_portico",
        Kind::Rpm => "usr/share/zsh/site-functions/_portico",
    };
    for (shell, path) in [
        ("bash", "usr/share/bash-completion/completions/portico"),
        ("zsh", zsh),
        ("fish", "usr/share/fish/vendor_completions.d/portico.fish"),
    ] {
        ensure!(
            machine.read(path)? == machine.output("portico", &["completions", shell])?,
            "{path}"
        );
    }
    Ok(())
}

/// The administrator's part: node file, directory, certificates.
fn configure(machine: &Machine, town: &Town) -> Result<()> {
    let etc = machine.root.join("etc/portico");
    let paths = [
        ("\"/run/portico/pid\"", "/run/portico/portico.pid"),
        ("\"/run/portico/access.log\"", "/var/log/portico/access.log"),
        ("\"/run/portico/audit.log\"", "/var/log/portico/audit.log"),
    ];
    town.configure(&etc, town.node(), &paths)?;
    machine.run(
        "sh",
        &["-c", "chgrp portico /etc/portico/* && chmod 640 /etc/portico/*"],
    )?;
    let checked = machine.as_portico(&["check"]).output()?;
    done("portico check", &checked).map(drop)
}

fn is_gone(machine: &Machine) -> Result<()> {
    let left = [
        "usr/lib/portico",
        "usr/share/doc/portico",
        "usr/lib/systemd/system/portico.service",
    ];
    for path in left {
        ensure!(!machine.root.join(path).exists(), "{path} is left");
    }
    if machine.kind == Kind::Deb {
        for path in [
            "var/log/portico",
            "var/lib/portico",
            "etc/portico/portico.yaml",
            "etc/logrotate.d/portico",
        ] {
            ensure!(!machine.root.join(path).exists(), "{path} is left");
        }
    }
    // What the administrator put there belongs to them.
    ensure!(machine.root.join("etc/portico/front.key").exists());
    if machine.init == Init::Systemd {
        let state = machine.try_run("systemctl", &["show", "--property=LoadState", "portico.service"])?;
        ensure!(state.stdout == b"LoadState=not-found\n", "{state:?}");
    }
    Ok(())
}

fn step(what: &str) {
    println!("packages: {what}");
}

/// The folder, with a first process and spaces of its own for processes and mounts.
struct Machine {
    root: PathBuf,
    kind: Kind,
    init: Init,
    /// The first process, as it is called outside.
    first: String,
    // Held: all processes inside end with it.
    _unshare: Child,
}

impl Machine {
    fn start(stage: &Stage, root: &Path, kind: Kind, init: Init) -> Result<Self> {
        let root = root.canonicalize()?;
        let first = match init {
            Init::Systemd => "/lib/systemd/systemd --log-target=journal",
            // It takes in processes that have lost their parent.
            Init::None => "/bin/sh -c \"while :; do sleep 1; done\"",
        };
        let script = format!(
            "set -e; cd {root}
             mount --make-rprivate /; mount --bind . .; cd {root}
             mount -t proc proc proc; mount --bind -o ro proc/sys proc/sys; mount -t sysfs -o ro sysfs sys
             mount -t cgroup2 cgroup2 sys/fs/cgroup || test {init:?} = None
             mount -t tmpfs tmpfs run; mount -t tmpfs -o mode=1777 tmpfs tmp; mount -t tmpfs tmpfs dev
             for name in null zero full random urandom tty; do
               touch dev/$name; mount --bind /dev/$name dev/$name
             done
             mkdir dev/shm dev/pts; mount -t devpts -o ptmxmode=0666 devpts dev/pts; ln -s pts/ptmx dev/ptmx
             pivot_root . mnt
             exec chroot . /bin/sh -c 'umount -l /mnt; exec /usr/bin/env -i container=portico PATH=/usr/sbin:/usr/bin:/sbin:/bin {first}'",
            root = root.display(),
        );
        let unshare = Child::spawn(
            "the folder",
            "unshare",
            &[
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--cgroup",
                "--uts",
                "sh",
                "-c",
                &script,
            ],
            &[],
            &stage.path().join("folder.log"),
        )?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.pid());
        let first = until("the first process in the folder", SOON, || {
            let first = std::fs::read_to_string(&children)?.trim().to_owned();
            // Until then it is the shell that mounts.
            let environment = std::fs::read_to_string(format!("/proc/{first}/environ")).unwrap_or_default();
            Ok(environment.starts_with("container=").then_some(first))
        })?;
        let machine = Self {
            root,
            kind,
            init,
            first,
            _unshare: unshare,
        };
        if init == Init::Systemd {
            until("systemd to have started", SOON, || {
                let state = machine.try_run("systemctl", &["is-system-running"])?;
                Ok((state.stdout == b"running\n" || state.stdout == b"degraded\n").then_some(()))
            })?;
        }
        Ok(machine)
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.first,
            "--mount",
            "--pid",
            "--cgroup",
            "--uts",
            "--root",
            "--wd",
        ]);
        command.env_clear();
        command.envs([
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("DEBIAN_FRONTEND", "noninteractive"),
        ]);
        command.stdin(Stdio::null());
        command
    }

    fn try_run(&self, program: &str, args: &[&str]) -> Result<Output> {
        Ok(self.enter().arg(program).args(args).output()?)
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let out = self.try_run(program, args)?;
        done(&format!("{program} {args:?}"), &out)
    }

    /// What it prints, without what it prints as errors.
    fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let out = self.try_run(program, args)?;
        done(&format!("{program} {args:?}"), &out)?;
        Ok(String::from_utf8(out.stdout)?)
    }

    fn as_portico(&self, args: &[&str]) -> Command {
        let mut command = self.enter();
        command.args(["setpriv", "--reuid=portico", "--regid=portico", "--clear-groups"]);
        command.arg("portico").args(args);
        command
    }

    /// Installs a package, or another version of it, as it is done without a terminal. Returns what was said.
    fn install(&self, package: &Path) -> Result<String> {
        let name = package.file_name().context("a package")?;
        std::fs::copy(package, self.root.join("root").join(name))?;
        let inside = format!("/root/{}", name.to_str().context("a name")?);
        match self.kind {
            Kind::Deb => self.run("dpkg", &["--force-confdef", "--install", &inside]),
            // Debian's packages are none of rpm's, so it is told not to ask for what is needed.
            Kind::Rpm => {
                let args = ["--nodeps", "--oldpackage", "--replacepkgs", "--upgrade", &inside];
                self.run("rpm", &args)
            }
        }
    }

    fn remove(&self) -> Result<()> {
        match self.kind {
            Kind::Deb => self.run("dpkg", &["--remove", "portico"]).map(drop),
            Kind::Rpm => self.run("rpm", &["--nodeps", "--erase", "portico"]).map(drop),
        }
    }

    fn start_node(&self) -> Result<()> {
        match self.init {
            Init::Systemd => self.run("systemctl", &["start", "portico"]).map(drop),
            Init::None => {
                self.run("install", &["-d", "-o", "portico", "-g", "portico", "/run/portico"])?;
                // Not with `output()`, which would wait until the node closes its ends of the pipes.
                let status = self
                    .as_portico(&["-d"])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()?;
                ensure!(status.success(), "portico -d: {status}");
                until("the node to serve", SOON, || {
                    Ok(self.try_run("portico", &["status"])?.status.success().then_some(()))
                })
            }
        }
    }

    /// The process that accepts connections, as it is called inside.
    fn main_process(&self) -> Result<u32> {
        let said = match self.init {
            Init::Systemd => self.output(
                "systemctl",
                &["show", "--property=MainPID", "--value", "portico.service"],
            )?,
            Init::None => self.output("cat", &["/run/portico/portico.pid"])?,
        };
        Ok(said.trim().parse()?)
    }

    /// Whether a process runs inside. One that has ended and was not waited for does not.
    fn runs(&self, process: u32) -> Result<bool> {
        let status = self.try_run("cat", &[&format!("/proc/{process}/status")])?;
        let text = String::from_utf8_lossy(&status.stdout);
        Ok(text.contains("Name:\tportico") && !text.contains("State:\tZ"))
    }

    fn read(&self, path: &str) -> Result<String> {
        std::fs::read_to_string(self.root.join(path)).with_context(|| path.to_owned())
    }
}

fn done(what: &str, out: &Output) -> Result<String> {
    let said = String::from_utf8_lossy(&[&out.stdout[..], &out.stderr[..]].concat()).into_owned();
    ensure!(out.status.success(), "{what}: {}\n{said}", out.status);
    Ok(said)
}
