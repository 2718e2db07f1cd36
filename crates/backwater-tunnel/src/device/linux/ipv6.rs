//! Whether this host has IPv6 (Documentation/networking/ip-sysctl.rst).

use std::fs;

/// Whether a device may have IPv6 addresses: the kernel has IPv6, and `disable_ipv6` of the device is 0.
pub(super) fn is_on(device: &str) -> bool {
    fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6")).is_ok_and(|value| value.trim() == "0")
}

/// Whether a device other than the loopback has an IPv6 address.
pub(super) fn is_used() -> bool {
    fs::read_to_string("/proc/net/if_inet6").is_ok_and(|addresses| is_used_by(&addresses))
}

/// Each line ends with the device's name.
fn is_used_by(addresses: &str) -> bool {
    addresses.lines().filter_map(|line| line.split_whitespace().last()).any(|device| device != "lo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_alone_is_no_use_of_ipv6() {
        let loopback = "00000000000000000000000000000001 01 80 10 80       lo\n";
        assert!(!is_used_by("") && !is_used_by(loopback));
        assert!(is_used_by(&format!("{loopback}fe80000000000000020c29fffe2ee501 02 40 20 80     eth0\n")));
    }
}
