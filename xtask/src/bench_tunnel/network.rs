//! Two networks and the link between them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use anyhow::Result;

use super::process::run;
use crate::namespace::ends_with_us;

/// An end of the link. The near one, which sends, is in the network of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Near,
    Far,
}

/// Of the link. Inside the tunnels it is less by what WireGuard adds over IPv6, and a little: the usual value.
const OUTER_MTU: usize = 1500;
pub(super) const INNER_MTU: usize = 1420;

impl End {
    pub(super) const BOTH: [Self; 2] = [Self::Near, Self::Far];

    pub(super) fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
        }
    }

    /// Its address on the link.
    pub(super) fn outer(self, v6: bool) -> IpAddr {
        let end = self.number();
        if v6 {
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, end.into()).into()
        } else {
            Ipv4Addr::new(10, 77, 0, end).into()
        }
    }

    /// Its address in the tunnel of that index.
    pub(super) fn inner(self, tunnel: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, tunnel, self.number())
    }

    /// To start a program in its network; it ends with us.
    pub(super) fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = ends_with_us();
        if self == Self::Far {
            command.args(["nsenter", "--net=/run/netns/far"]);
        }
        command.arg(program);
        command
    }

    pub(super) fn ip(self, arguments: &str) -> Result<()> {
        run(self.command("ip"), arguments)
    }

    fn number(self) -> u8 {
        match self {
            Self::Near => 1,
            Self::Far => 2,
        }
    }
}

/// Makes the far network and the link.
pub(super) fn make() -> Result<()> {
    End::Near.ip("netns add far")?;
    End::Near.ip("link add near type veth peer name far netns far")?;
    for end in End::BOTH {
        let name = end.name();
        end.ip("link set lo up")?;
        end.ip(&format!("link set {name} mtu {OUTER_MTU} up"))?;
        end.ip(&format!("address add {}/24 dev {name}", end.outer(false)))?;
        end.ip(&format!("address add {}/64 dev {name} nodad", end.outer(true)))?;
    }
    Ok(())
}
