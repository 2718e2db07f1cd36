//! Options of a socket that tell of what is received, and that say how datagrams leave.

use std::io;

use socket2::Socket;

use super::UdpSocketBuilder;
use crate::sys;

/// What is told of what is received, and how it arrives.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    hop_limit: bool,
    timestamps: bool,
    no_offload: bool,
}

/// How datagrams leave; what is `None` stays as the system has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leaving {
    /// The six bits, not shifted.
    pub(crate) dscp: Option<u8>,
    pub(crate) mark: Option<u32>,
    pub(crate) device: Option<Box<[u8]>>,
    pub(crate) interface: Option<u32>,
}

impl UdpSocketBuilder {
    /// Whether the hop limits of what is received are told ([`GroBatch::hop_limit`](crate::GroBatch::hop_limit)). The default is that they
    /// are not, which saves a control message for each batch. Linux only: elsewhere they are not told.
    #[must_use]
    pub fn receive_hop_limit(mut self, on: bool) -> Self {
        self.told.hop_limit = on;
        self
    }

    /// Whether the kernel's timestamps of what is received are told ([`RecvMeta::timestamp`](crate::RecvMeta::timestamp)). The default is
    /// that they are not. Linux only: elsewhere they are not told.
    #[must_use]
    pub fn receive_timestamps(mut self, on: bool) -> Self {
        self.told.timestamps = on;
        self
    }

    /// Whether datagrams of a flow may arrive as one (GRO), which is the default where the system can. Without it a buffer need not hold
    /// more than one datagram, and receiving costs more. It fails with `Unsupported` on Windows if it cannot be switched off.
    #[must_use]
    pub fn receive_offload(mut self, on: bool) -> Self {
        self.told.no_offload = !on;
        self
    }

    /// The DSCP of all that is sent (RFC 2474), 0 to 63; the two higher bits of `dscp` are ignored. The ECN field is set beside it.
    /// Linux and Android: elsewhere binding fails with `Unsupported`, as for the next three.
    #[must_use]
    pub fn dscp(mut self, dscp: u8) -> Self {
        self.leaving.dscp = Some(dscp & 0x3f);
        self
    }

    /// The mark of all that is sent (`SO_MARK`), which routing rules and filters may look at. Binding fails with `PermissionDenied` without
    /// `CAP_NET_ADMIN` or `CAP_NET_RAW`.
    #[must_use]
    pub fn mark(mut self, mark: u32) -> Self {
        self.leaving.mark = Some(mark);
        self
    }

    /// The interface that all is sent by and received from, by its name (`SO_BINDTODEVICE`).
    #[must_use]
    pub fn device(mut self, name: &str) -> Self {
        self.leaving.device = Some(name.as_bytes().into());
        self
    }

    /// The interface that all is sent by, by its index, while datagrams are received from any (`IP_UNICAST_IF`, `IPV6_UNICAST_IF`). It does
    /// nothing beside [`device`](Self::device). For a link-local destination give the scope of its address instead.
    #[must_use]
    pub fn interface(mut self, index: u32) -> Self {
        self.leaving.interface = Some(index);
        self
    }
}

impl Told {
    pub(super) fn ask(self, state: &sys::State, socket: &Socket) -> io::Result<()> {
        if self.hop_limit {
            state.receive_hop_limit(socket)?;
        }
        if self.timestamps {
            state.receive_timestamps(socket)?;
        }
        if self.no_offload {
            state.no_receive_offload(socket)?;
        }
        Ok(())
    }
}

impl Leaving {
    pub(super) fn set(&self, socket: &Socket) -> io::Result<()> {
        let is_set = self.dscp.is_some() || self.mark.is_some() || self.device.is_some() || self.interface.is_some();
        if is_set { sys::set_leaving(socket, self) } else { Ok(()) }
    }
}
