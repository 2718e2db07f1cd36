use super::*;

const GSO_MAX_SEGS: u16 = libc::IFLA_GSO_MAX_SEGS;
const GSO_MAX_SIZE: u16 = libc::IFLA_GSO_MAX_SIZE;
const UP: c_int = libc::IFF_UP | libc::IFF_BROADCAST;

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::from((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend([0; 10]);
    message.extend(body);
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::from((4 + value.len() as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// A device as the kernel describes it, with its name first.
fn device(index: u32, flags: c_int, numbers: &[(u16, u32)]) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend([0xff; 4]);
    body.extend(attribute(libc::IFLA_IFNAME, b"device\0"));
    for (kind, value) in numbers {
        body.extend(attribute(*kind, &value.to_ne_bytes()));
    }
    message(libc::RTM_NEWLINK, &body)
}

fn done() -> Vec<u8> {
    message(libc::NLMSG_DONE as u16, &[0; 4])
}

/// Datagrams and the kernel's bytes, headers and all.
fn limits(devices: &[Vec<u8>]) -> (u32, u32) {
    let mut read = Devices::default();
    assert_eq!(read.read(&devices.concat()).unwrap(), Answer::Continued);
    assert_eq!(read.read(&done()).unwrap(), Answer::Complete);
    let Limits { datagrams, bytes } = read.limits();
    (datagrams, bytes.saturating_add(HEADERS + 1))
}

const NONE: (u32, u32) = (64, u32::MAX);
const LINK: (u16, u32) = (libc::IFLA_LINK, 2);

#[test]
fn only_devices_above_others_limit_a_batch() {
    let small = [(GSO_MAX_SEGS, 16), (GSO_MAX_SIZE, 20_000), (libc::IFLA_MTU, 1500)];
    assert_eq!(limits(&[device(2, UP, &small)]), NONE);
    assert_eq!(limits(&[device(3, UP, &[&small[..], &[LINK]].concat())]), (16, 20_000));
    assert_eq!(limits(&[device(3, UP, &[&[LINK], &small[..]].concat())]), (16, 20_000));
    // A bond is known by its ports, which may come before it or after.
    let port = device(2, UP, &[(libc::IFLA_MASTER, 7)]);
    assert_eq!(limits(&[port.clone(), device(7, UP, &small)]), (16, 20_000));
    assert_eq!(limits(&[device(7, UP, &small), port.clone()]), (16, 20_000));
    assert_eq!(limits(&[device(8, UP, &small), port]), NONE);
    assert_eq!(limits(&[device(3, UP & !libc::IFF_UP, &[&small[..], &[LINK]].concat())]), NONE, "it is down");
}

#[test]
fn the_smallest_limits_hold_whichever_device_has_them() {
    let upper = |index, numbers: &[(u16, u32)]| device(index, UP, &[&[LINK], numbers].concat());
    assert_eq!(limits(&[upper(3, &[(GSO_MAX_SEGS, 65_535), (GSO_MAX_SIZE, 65_536)])]), (64, 65_536));
    assert_eq!(limits(&[upper(3, &[(GSO_MAX_SEGS, 30)]), upper(4, &[(GSO_MAX_SIZE, 30_000)])]), (30, 30_000));
    assert_eq!(limits(&[upper(3, &[(GSO_MAX_SEGS, 30)]), upper(4, &[(GSO_MAX_SEGS, 40)])]), (30, u32::MAX));
    // IPv4 may have a limit of its own, smaller or larger.
    assert_eq!(limits(&[upper(3, &[(GSO_MAX_SIZE, 60_000), (IFLA_GSO_IPV4_MAX_SIZE, 50_000)])]), (64, 50_000));
    assert_eq!(limits(&[upper(3, &[(GSO_MAX_SIZE, 50_000), (IFLA_GSO_IPV4_MAX_SIZE, 60_000)])]), (64, 50_000));
    // A batch of the limit's length is cut, headers included.
    let mut read = Devices::default();
    read.read(&upper(3, &[(GSO_MAX_SIZE, 65_536)])).unwrap();
    assert_eq!(read.limits().bytes, 65_536 - 1 - 22 - 40 - 8);
    let mut read = Devices::default();
    read.read(&upper(3, &[(GSO_MAX_SIZE, 10)])).unwrap();
    assert_eq!(read.limits().bytes, 0);
}

#[test]
fn other_messages_are_passed_over() {
    let mut deleted = device(3, UP, &[LINK, (GSO_MAX_SEGS, 16)]);
    deleted[4..6].copy_from_slice(&libc::RTM_DELLINK.to_ne_bytes());
    assert_eq!(limits(&[deleted, device(4, UP, &[LINK, (GSO_MAX_SEGS, 30)])]), (30, u32::MAX));
}

#[test]
fn an_answer_that_is_cut_or_an_error_is_none() {
    let whole = device(3, UP, &[LINK, (GSO_MAX_SEGS, 16)]);
    for len in 0..whole.len() {
        let read = Devices::default().read(&whole[..len]);
        assert_eq!(read.is_ok(), len < 16, "{len} bytes");
    }
    assert!(Devices::default().read(&message(libc::NLMSG_ERROR as u16, &[0; 20])).is_err());
    assert!(Devices::default().read(&[0; 16]).is_err(), "a length of nothing does not go on for ever");
    // Attributes that are none.
    for attributes in [&[0; 8][..], &[3, 0, 5, 0], &[200, 0, 5, 0, 1, 0, 0, 0]] {
        let body = [&[0; 8][..], &UP.to_ne_bytes(), &[0; 4], attributes].concat();
        let mut read = Devices::default();
        assert_eq!(read.read(&message(libc::RTM_NEWLINK, &body)).unwrap(), Answer::Continued);
        assert_eq!(read.limits(), Limits::NONE);
    }
    assert_eq!(Devices::default().read(&message(libc::RTM_NEWLINK, &[0; 15])).unwrap(), Answer::Continued);
}

#[test]
fn limits_survive_being_packed() {
    let limits = Limits { datagrams: 16, bytes: 0xffff_0000 };
    assert_eq!(Limits::from_bits(limits.to_bits()), limits);
}
