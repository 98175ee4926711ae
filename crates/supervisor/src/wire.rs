//! The messages between the server, the supervisor and the init of each sandbox, and how they are encoded.
//!
//! Both ends are the same binary, so the format has no versions: fields in order, numbers little-endian, byte strings
//! and lists prefixed with a 32-bit length. Descriptors travel beside a message, in the order its documentation gives.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::Exit;

/// The bytes of a message do not have the shape that its sender promised.
#[derive(Debug, thiserror::Error)]
#[error("malformed message between the server and a sandbox: {0}")]
pub struct Malformed(&'static str);

/// Server to supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToSupervisor {
    /// Clone an init. Descriptors: its control socket.
    Create { key: u64 },
    /// These control groups belong to the sandbox; thaw and remove them should the server die.
    Groups { key: u64, dirs: Vec<PathBuf> },
    /// Kill the init and with it everything in its process namespace.
    Kill { key: u64 },
    /// The server has removed the groups of a sandbox that has exited.
    Forget { key: u64 },
}

/// Supervisor to server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromSupervisor {
    /// There was no init to be had.
    CloneFailed { key: u64, errno: i32 },
    /// The init and all processes of its namespace are gone.
    Exited { key: u64 },
}

/// Server to init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToInit {
    /// Who the tenants are and what limits them. First, once. Descriptors: those of the control group, as `group` says.
    Settle(Settle),
    /// Make the sandbox. Second, once. Descriptors: network namespace (if `has_netns`), `/tmp` mount (if `has_tmp`).
    Build(Box<Build>),
    /// Start a process. Descriptors: stdout, stderr, status pipe, log pipe (if `log_fd_env` is set), socket over which its
    /// environment will come (if it `waits`).
    Spawn(Box<Spawn>),
    /// Send a signal to a process, if it still runs.
    Signal { process: u32, signal: i32 },
    /// Kill every process but init; answered by [`FromInit::AllKilled`].
    KillAll,
    /// Stop every process but init, or let all go on: the freezer of a sandbox without a control group.
    Stop { stop: bool },
}

/// How processes enter the control group of their sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupEntry {
    /// They do not.
    None,
    /// One descriptor: the directory, for `CLONE_INTO_CGROUP`.
    V2,
    /// This many descriptors of `cgroup.procs` files, to each of which the process writes `0`.
    V1(u32),
}

/// Whom an init starts processes as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settle {
    /// User and group to become, in the host's numbers; `None` in a user namespace, where there is only one.
    pub uid: Option<u32>,
    /// `RLIMIT_NPROC`, where no control group limits the number of tasks.
    pub max_tasks: Option<u32>,
    pub group: GroupEntry,
}

/// What an init makes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Build {
    pub hostname: String,
    pub has_netns: bool,
    /// Make a network namespace with nothing but loopback and listen there; the sockets come back with `Ready`.
    pub own_network: Option<Vec<std::net::SocketAddrV4>>,
    pub has_tmp: bool,
    pub tmp_bytes: u64,
    pub binds: Vec<(PathBuf, PathBuf)>,
    pub dirs: Vec<PathBuf>,
    pub files: Vec<(PathBuf, Vec<u8>)>,
    pub symlinks: Vec<(PathBuf, PathBuf)>,
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawn {
    pub process: u32,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    pub log_fd_env: Option<String>,
    /// It is started before it is known whose it will be: it finds its socket in `FIRELET_PRESTART_FD`.
    pub waits: bool,
}

/// Init to server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromInit {
    /// Processes may be started. Descriptors: the mount namespace, the listening sockets of `Build::own_network`.
    Ready(Timings),
    /// The sandbox could not be made; init is about to exit.
    Failed { step: String, errno: i32 },
    /// A process that `Spawn` named has ended.
    Exit { process: u32, exit: Exit },
    /// The answer to `KillAll`: init has no children left.
    AllKilled,
}

/// How long init took, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From its first instruction until it could take the `Build` message.
    pub prepare: u32,
    /// The mount tree.
    pub mounts: u32,
    /// Everything after `Build`.
    pub build: u32,
}

impl ToSupervisor {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::default();
        match self {
            ToSupervisor::Create { key } => out.u8(1).u64(*key),
            ToSupervisor::Groups { key, dirs } => {
                out.u8(2).u64(*key);
                out.list(dirs, |out, dir| out.path(dir))
            }
            ToSupervisor::Kill { key } => out.u8(3).u64(*key),
            ToSupervisor::Forget { key } => out.u8(4).u64(*key),
        };
        out.0
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Decoder(bytes);
        let message = match input.u8()? {
            1 => ToSupervisor::Create { key: input.u64()? },
            2 => ToSupervisor::Groups { key: input.u64()?, dirs: input.list(Decoder::path)? },
            3 => ToSupervisor::Kill { key: input.u64()? },
            4 => ToSupervisor::Forget { key: input.u64()? },
            _ => return Err(Malformed("unknown request to the supervisor")),
        };
        input.end(message)
    }
}

impl FromSupervisor {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::default();
        match self {
            FromSupervisor::CloneFailed { key, errno } => out.u8(1).u64(*key).i32(*errno),
            FromSupervisor::Exited { key } => out.u8(2).u64(*key),
        };
        out.0
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Decoder(bytes);
        let message = match input.u8()? {
            1 => FromSupervisor::CloneFailed { key: input.u64()?, errno: input.i32()? },
            2 => FromSupervisor::Exited { key: input.u64()? },
            _ => return Err(Malformed("unknown report of the supervisor")),
        };
        input.end(message)
    }
}

impl ToInit {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::default();
        match self {
            ToInit::Settle(settle) => {
                out.u8(0);
                settle.encode(&mut out);
            }
            ToInit::Build(build) => {
                out.u8(1);
                build.encode(&mut out);
            }
            ToInit::Spawn(spawn) => {
                out.u8(2);
                spawn.encode(&mut out);
            }
            ToInit::Signal { process, signal } => {
                out.u8(3).u32(*process).i32(*signal);
            }
            ToInit::KillAll => {
                out.u8(4);
            }
            ToInit::Stop { stop } => {
                out.u8(5).u8((*stop).into());
            }
        }
        out.0
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Decoder(bytes);
        let message = match input.u8()? {
            0 => ToInit::Settle(Settle::decode(&mut input)?),
            1 => ToInit::Build(Box::new(Build::decode(&mut input)?)),
            2 => ToInit::Spawn(Box::new(Spawn::decode(&mut input)?)),
            3 => ToInit::Signal { process: input.u32()?, signal: input.i32()? },
            4 => ToInit::KillAll,
            5 => ToInit::Stop { stop: input.bool()? },
            _ => return Err(Malformed("unknown request to an init")),
        };
        input.end(message)
    }
}

impl Settle {
    fn encode(&self, out: &mut Encoder) {
        out.option(self.uid.as_ref(), |out, uid| out.u32(*uid));
        out.option(self.max_tasks.as_ref(), |out, limit| out.u32(*limit));
        match self.group {
            GroupEntry::None => out.u32(0),
            GroupEntry::V2 => out.u32(u32::MAX),
            GroupEntry::V1(count) => out.u32(count),
        };
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Settle, Malformed> {
        Ok(Settle {
            uid: input.option(Decoder::u32)?,
            max_tasks: input.option(Decoder::u32)?,
            group: match input.u32()? {
                0 => GroupEntry::None,
                u32::MAX => GroupEntry::V2,
                count => GroupEntry::V1(count),
            },
        })
    }
}

impl Spawn {
    fn encode(&self, out: &mut Encoder) {
        out.u32(self.process);
        out.list(&self.argv, |out, argument| out.str(argument));
        out.list(&self.env, |out, (name, value)| out.str(name).str(value));
        out.path(&self.cwd).option(self.log_fd_env.as_ref(), |out, name| out.str(name)).u8(self.waits.into());
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Spawn, Malformed> {
        Ok(Spawn {
            process: input.u32()?,
            argv: input.list(Decoder::string)?,
            env: input.list(|input| Ok((input.string()?, input.string()?)))?,
            cwd: input.path()?,
            log_fd_env: input.option(Decoder::string)?,
            waits: input.bool()?,
        })
    }
}

impl Build {
    fn encode(&self, out: &mut Encoder) {
        out.str(&self.hostname).u8(self.has_netns.into());
        out.option(self.own_network.as_ref(), |out, listen| {
            out.list(listen, |out, address| out.u32(address.ip().to_bits()).u32(address.port().into()))
        });
        out.u8(self.has_tmp.into()).u64(self.tmp_bytes);
        out.list(&self.binds, |out, (source, target)| out.path(source).path(target));
        out.list(&self.dirs, |out, dir| out.path(dir));
        out.list(&self.files, |out, (path, content)| out.path(path).bytes(content));
        out.list(&self.symlinks, |out, (path, target)| out.path(path).path(target));
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Build, Malformed> {
        Ok(Build {
            hostname: input.string()?,
            has_netns: input.bool()?,
            own_network: input.option(|input| {
                input.list(|input| {
                    let ip = std::net::Ipv4Addr::from_bits(input.u32()?);
                    let port = u16::try_from(input.u32()?).map_err(|_| Malformed("port beyond 65535"))?;
                    Ok(std::net::SocketAddrV4::new(ip, port))
                })
            })?,
            has_tmp: input.bool()?,
            tmp_bytes: input.u64()?,
            binds: input.list(|input| Ok((input.path()?, input.path()?)))?,
            dirs: input.list(Decoder::path)?,
            files: input.list(|input| Ok((input.path()?, input.bytes()?.to_vec())))?,
            symlinks: input.list(|input| Ok((input.path()?, input.path()?)))?,
        })
    }
}

impl FromInit {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::default();
        match self {
            FromInit::Ready(timings) => out.u8(1).u32(timings.prepare).u32(timings.mounts).u32(timings.build),
            FromInit::Failed { step, errno } => out.u8(2).str(step).i32(*errno),
            FromInit::Exit { process, exit } => match exit {
                Exit::Code(code) => out.u8(3).u32(*process).u8(0).i32(*code),
                Exit::Signal(signal) => out.u8(3).u32(*process).u8(1).i32(*signal),
            },
            FromInit::AllKilled => out.u8(4),
        };
        out.0
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut input = Decoder(bytes);
        let message = match input.u8()? {
            1 => FromInit::Ready(Timings { prepare: input.u32()?, mounts: input.u32()?, build: input.u32()? }),
            2 => FromInit::Failed { step: input.string()?, errno: input.i32()? },
            3 => {
                let process = input.u32()?;
                let by_signal = input.bool()?;
                let number = input.i32()?;
                let exit = if by_signal { Exit::Signal(number) } else { Exit::Code(number) };
                FromInit::Exit { process, exit }
            }
            4 => FromInit::AllKilled,
            _ => return Err(Malformed("unknown report of an init")),
        };
        input.end(message)
    }
}

/// Appends fields to a message.
#[derive(Default)]
struct Encoder(Vec<u8>);

impl Encoder {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn i32(&mut self, value: i32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(&mut self, value: &[u8]) -> &mut Self {
        let length = u32::try_from(value.len()).expect("messages are far below 4 GiB: the channel refuses them before");
        self.u32(length);
        self.0.extend_from_slice(value);
        self
    }

    fn str(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    fn path(&mut self, value: &Path) -> &mut Self {
        self.bytes(value.as_os_str().as_bytes())
    }

    fn list<T>(&mut self, items: &[T], mut each: impl for<'a> FnMut(&'a mut Self, &T) -> &'a mut Self) -> &mut Self {
        self.u32(u32::try_from(items.len()).expect("a list in a message has far fewer than 2^32 items"));
        for item in items {
            each(self, item);
        }
        self
    }

    fn option<T>(
        &mut self,
        value: Option<&T>,
        each: impl for<'a> FnOnce(&'a mut Self, &T) -> &'a mut Self,
    ) -> &mut Self {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                each(self, value)
            }
        }
    }
}

/// Takes fields off a message.
struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Malformed("it ends early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a truth value is neither 0 nor 1")),
        }
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    fn string(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| Malformed("a string is not UTF-8"))
    }

    fn path(&mut self) -> Result<PathBuf, Malformed> {
        Ok(PathBuf::from(OsStr::from_bytes(self.bytes()?)))
    }

    fn list<T>(&mut self, mut each: impl FnMut(&mut Self) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        let count = self.u32()?;
        // Not reserved ahead: the count is only believed as far as bytes follow it.
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(each(self)?);
        }
        Ok(items)
    }

    fn option<T>(&mut self, each: impl FnOnce(&mut Self) -> Result<T, Malformed>) -> Result<Option<T>, Malformed> {
        if self.bool()? { each(self).map(Some) } else { Ok(None) }
    }

    fn end<T>(self, message: T) -> Result<T, Malformed> {
        if self.0.is_empty() { Ok(message) } else { Err(Malformed("bytes follow its end")) }
    }
}

#[cfg(test)]
mod tests;
