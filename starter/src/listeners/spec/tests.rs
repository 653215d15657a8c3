//! Every form of `--port` and `--path`, and everything that is none. The long functions are tables.

use super::*;
use crate::words::failure::Status;
use Transport::{Tcp, Udp};

fn ip(text: &str) -> Host {
    Host::Address(text.parse().unwrap())
}

fn name(text: &str) -> Host {
    Host::Name(text.to_owned())
}

fn one_port(value: &str) -> PortSpec {
    let mut specs = parse_ports(value).unwrap_or_else(|failure| panic!("{value:?}: {failure}"));
    assert_eq!(specs.len(), 1, "{value:?}");
    specs.remove(0)
}

#[test]
fn ports_are_read_and_named_as_in_server_starter() {
    for (value, key, host, transport, port, descriptor) in [
        ("8080", "8080", ip("0.0.0.0"), Tcp, 8080, None),
        ("1", "1", ip("0.0.0.0"), Tcp, 1, None),
        ("0", "0", ip("0.0.0.0"), Tcp, 0, None),
        ("[::1]:u0=5", "[::1]:0", ip("::1"), Udp, 0, Some(5)),
        ("65535", "65535", ip("0.0.0.0"), Tcp, 65535, None),
        ("0080", "0080", ip("0.0.0.0"), Tcp, 80, None),
        (" \t\n\x0b\x0c\r80 ", "80", ip("0.0.0.0"), Tcp, 80, None),
        ("u53", "53", ip("0.0.0.0"), Udp, 53, None),
        ("80=0", "80", ip("0.0.0.0"), Tcp, 80, Some(0)),
        ("80=2", "80", ip("0.0.0.0"), Tcp, 80, Some(2)),
        (
            "u53 =1048575 ",
            "53",
            ip("0.0.0.0"),
            Udp,
            53,
            Some(1_048_575),
        ),
        (":8080", "8080", ip("0.0.0.0"), Tcp, 8080, None),
        ("*:8080", "8080", ip("0.0.0.0"), Tcp, 8080, None),
        (" * : u53=4", "53", ip("0.0.0.0"), Udp, 53, Some(4)),
        ("0.0.0.0:80", "0.0.0.0:80", ip("0.0.0.0"), Tcp, 80, None),
        ("1.2.3.4:80", "1.2.3.4:80", ip("1.2.3.4"), Tcp, 80, None),
        ("[1.2.3.4]:80", "1.2.3.4:80", ip("1.2.3.4"), Tcp, 80, None),
        (
            "1.2.3.4 : 80 =7",
            "1.2.3.4:80",
            ip("1.2.3.4"),
            Tcp,
            80,
            Some(7),
        ),
        (
            "localhost:80",
            "localhost:80",
            name("localhost"),
            Tcp,
            80,
            None,
        ),
        (
            "Some-Host.example:u53=9",
            "Some-Host.example:53",
            name("Some-Host.example"),
            Udp,
            53,
            Some(9),
        ),
        ("u80:80", "u80:80", name("u80"), Tcp, 80, None),
        ("127.1:80", "127.1:80", name("127.1"), Tcp, 80, None),
        ("[::1]:80", "[::1]:80", ip("::1"), Tcp, 80, None),
        ("[::]:443", "[::]:443", ip("::"), Tcp, 443, None),
        (
            " [ ::1 ] : u53 =5 ",
            "[::1]:53",
            ip("::1"),
            Udp,
            53,
            Some(5),
        ),
        ("[::1]:u53", "[::1]:53", ip("::1"), Udp, 53, None),
        ("::1:80", "[::1]:80", ip("::1"), Tcp, 80, None),
        (":::80", "[::]:80", ip("::"), Tcp, 80, None),
        (
            "2001:DB8::a:u53",
            "[2001:DB8::a]:53",
            ip("2001:db8::a"),
            Udp,
            53,
            None,
        ),
        ("[0:0::1]:80", "[0:0::1]:80", ip("::1"), Tcp, 80, None),
        (
            "[::ffff:1.2.3.4]:80",
            "[::ffff:1.2.3.4]:80",
            ip("::ffff:1.2.3.4"),
            Tcp,
            80,
            None,
        ),
        (
            "[fe80::1%eth0]:80",
            "[fe80::1%eth0]:80",
            name("fe80::1%eth0"),
            Tcp,
            80,
            None,
        ),
        (
            "fe80::1%2:80",
            "[fe80::1%2]:80",
            name("fe80::1%2"),
            Tcp,
            80,
            None,
        ),
    ] {
        let spec = one_port(value);
        assert_eq!(spec.name, key, "{value:?}");
        assert_eq!(spec.host, host, "{value:?}");
        assert_eq!((spec.transport, spec.port), (transport, port), "{value:?}");
        assert_eq!(spec.descriptor, descriptor, "{value:?}");
    }
}

#[test]
fn a_port_that_the_kernel_chooses_is_named_by_its_number_and_no_other_is() {
    for (value, name) in [
        ("0", "1234"),
        ("u00", "1234"),
        ("127.0.0.1:0", "127.0.0.1:1234"),
        ("[::1]:0=4", "[::1]:1234"),
        ("80", "80"),
        ("localhost:080", "localhost:080"),
    ] {
        assert_eq!(one_port(value).name_with(1234), name, "{value:?}");
    }
}

#[test]
fn what_is_no_port_is_refused_with_the_cause() {
    let descriptor = "a descriptor is a number from 0 to 1048575";
    let bracket_port = "the address in brackets is followed by : and a port";
    let separators =
        "a host name cannot contain ; or =, which are separators in SERVER_STARTER_PORT";
    let zone = "the name of an interface follows %";
    let blank = "a host name cannot contain white space";
    let unknown = "a port is followed by another port or by the option freebind, not by";
    for (value, given, cause) in [
        ("", "", "a port is missing"),
        (" ", " ", "a port is missing"),
        (",", ",", "a port is missing"),
        ("80,", "80,", "a port is missing"),
        ("80,,81", "80,,81", "a port is missing"),
        ("65536", "65536", PORT_RANGE),
        ("80,70000", "70000", PORT_RANGE),
        ("99999999999999999999", "99999999999999999999", PORT_RANGE),
        ("+80", "+80", PORT_RANGE),
        ("-80", "-80", PORT_RANGE),
        ("U53", "U53", PORT_RANGE),
        ("u", "u", PORT_RANGE),
        ("u 53", "u 53", PORT_RANGE),
        ("8 0", "8 0", PORT_RANGE),
        ("٣", "٣", PORT_RANGE),
        (" abc ", "abc", PORT_RANGE),
        ("80;81", "80;81", PORT_RANGE),
        ("host:", "host:", PORT_RANGE),
        (":", ":", PORT_RANGE),
        ("[::1]:", "[::1]:", PORT_RANGE),
        ("host:http", "host:http", PORT_RANGE),
        ("80=", "80=", descriptor),
        ("80= 4", "80= 4", descriptor),
        ("80=-1", "80=-1", descriptor),
        ("80=x", "80=x", descriptor),
        ("80=1048576", "80=1048576", descriptor),
        ("80=99999999999", "80=99999999999", descriptor),
        ("80=4=5", "80=4=5", PORT_RANGE),
        ("freebind", "freebind", PORT_RANGE),
        ("freebind,80", "freebind", PORT_RANGE),
        ("80,8l", "8l", PORT_RANGE),
        ("80,u5x", "u5x", PORT_RANGE),
        ("80,freebind,", "80,freebind,", "a port is missing"),
        (
            "80,freebind,freebind",
            "80,freebind,freebind",
            "freebind is given twice",
        ),
        ("80,freebind=1", "80,freebind=1", "freebind takes no value"),
        (
            "80,81,Freebind",
            "81,Freebind",
            &format!("{unknown} Freebind"),
        ),
        ("80,mode=0660", "80,mode=0660", &format!("{unknown} mode")),
        ("[::1", "[::1", BRACKETS),
        ("[::1:80", "[::1:80", BRACKETS),
        ("::1]:80", "::1]:80", BRACKETS),
        ("[[::1]]:80", "[[::1]]:80", BRACKETS),
        ("x[::1]:80", "x[::1]:80", BRACKETS),
        ("[]:80", "[]:80", BRACKETS),
        ("[*]:80", "[*]:80", BRACKETS),
        ("[::1]", "[::1]", bracket_port),
        ("[::1]80", "[::1]80", bracket_port),
        ("[::1]]:80", "[::1]]:80", bracket_port),
        ("::80", "::80", ": is not an IPv6 address"),
        ("[:::1]:80", "[:::1]:80", ":::1 is not an IPv6 address"),
        (
            "[12345::]:80",
            "[12345::]:80",
            "12345:: is not an IPv6 address",
        ),
        ("host:80:81", "host:80:81", "host:80 is not an IPv6 address"),
        ("[fe80::1%]:80", "[fe80::1%]:80", zone),
        ("[fe80::1%a;b]:80", "[fe80::1%a;b]:80", zone),
        ("[fe80::1%a=b]:80", "[fe80::1%a=b]:80", zone),
        ("a;b:80", "a;b:80", separators),
        ("a=b:80", "a=b:80", separators),
        ("80=4:81", "80=4:81", separators),
        ("a b:80", "a b:80", blank),
        ("a\x1bb:80", "a\\x1Bb:80", blank),
        ("a\nb:80", "a\\x0Ab:80", blank),
    ] {
        let failure = parse_ports(value).expect_err(value);
        // A hint may follow.
        assert_eq!(
            failure.to_string().lines().next(),
            Some(format!("cannot use --port={}: {cause}", quoted(given)).as_str()),
            "{value:?}"
        );
        assert_eq!(failure.status, Status::Usage);
    }
}

#[test]
fn one_port_option_may_hold_a_list() {
    let names: Vec<_> = parse_ports("80, [::1]:81 ,u53=4").unwrap();
    let names: Vec<_> = names
        .iter()
        .map(|spec| (spec.given.as_str(), spec.name.as_str()))
        .collect();
    assert_eq!(
        names,
        [("80", "80"), ("[::1]:81", "[::1]:81"), ("u53=4", "53")]
    );
}

#[test]
fn options_belong_to_the_port_before_them() {
    let specs = parse_ports("192.0.2.7:80=4, freebind ,u53,u54,freebind,freebind:81").unwrap();
    let specs: Vec<_> = specs
        .iter()
        .map(|spec| (spec.given.as_str(), spec.name.as_str(), spec.freebind))
        .collect();
    assert_eq!(
        specs,
        [
            ("192.0.2.7:80=4,freebind", "192.0.2.7:80", true),
            ("u53", "53", false),
            ("u54,freebind", "54", true),
            ("freebind:81", "freebind:81", false),
        ]
    );
}

#[test]
fn paths_are_split_only_where_every_part_is_absolute() {
    for (value, paths) in [
        ("/a", vec![("/a", 0o777)]),
        ("a", vec![("a", 0o777)]),
        ("./a", vec![("./a", 0o777)]),
        ("/a b", vec![("/a b", 0o777)]),
        ("/a,b", vec![("/a,b", 0o777)]),
        ("rel,ative", vec![("rel,ative", 0o777)]),
        ("rel,/abs", vec![("rel,/abs", 0o777)]),
        ("/a,", vec![("/a,", 0o777)]),
        ("/a,,/b", vec![("/a,,/b", 0o777)]),
        ("/a,b,/c", vec![("/a,b,/c", 0o777)]),
        ("/a, /b", vec![("/a, /b", 0o777)]),
        (",", vec![(",", 0o777)]),
        ("/a,/b", vec![("/a", 0o777), ("/b", 0o777)]),
        (
            "/a,/b,/c",
            vec![("/a", 0o777), ("/b", 0o777), ("/c", 0o777)],
        ),
        ("@a", vec![("@a", 0o777)]),
        ("@a,/b", vec![("@a,/b", 0o777)]),
        ("/a,@b", vec![("/a,@b", 0o777)]),
        ("./@a,mode=0660", vec![("./@a", 0o660)]),
        ("/a,mode=0660", vec![("/a", 0o660)]),
        ("/a,b,mode=600", vec![("/a,b", 0o600)]),
        ("rel,mode=0", vec![("rel", 0)]),
        ("/a,mode=0777,/b", vec![("/a", 0o777), ("/b", 0o777)]),
        ("/a,mode=0660,/b", vec![("/a", 0o660), ("/b", 0o777)]),
        ("/a,/b,mode=0660", vec![("/a", 0o777), ("/b", 0o660)]),
        (
            "/a,mode=0600,/b,mode=0660",
            vec![("/a", 0o600), ("/b", 0o660)],
        ),
    ] {
        let specs =
            parse_paths(value.as_ref()).unwrap_or_else(|failure| panic!("{value:?}: {failure}"));
        let found: Vec<_> = specs
            .iter()
            .map(|spec| (spec.path.to_str().unwrap(), spec.mode))
            .collect();
        assert_eq!(found, paths, "{value:?}");
    }
}

#[test]
fn attributes_belong_to_the_path_before_them() {
    let specs = parse_paths(OsStr::new("/a,user=www,mode=0660,group=33,/b,group=adm")).unwrap();
    let path = |path: &str, given: &str, mode, user: Option<&str>, group: &str| PathSpec {
        given: given.into(),
        path: path.into(),
        mode,
        user: user.map(str::to_owned),
        group: Some(group.to_owned()),
    };
    let first = path(
        "/a",
        "/a,user=www,mode=0660,group=33",
        0o660,
        Some("www"),
        "33",
    );
    assert_eq!(
        specs,
        [first, path("/b", "/b,group=adm", 0o777, None, "adm")]
    );
}

#[test]
fn a_path_need_not_be_utf_8() {
    let specs = parse_paths(OsStr::from_bytes(b"/\xff,mode=0600,/\xfe")).unwrap();
    let paths: Vec<_> = specs
        .iter()
        .map(|spec| spec.path.as_os_str().as_bytes())
        .collect();
    assert_eq!(paths, [b"/\xff", b"/\xfe"]);
    let failure = parse_paths(OsStr::from_bytes(b"/a,user=\xff")).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "cannot use --path=/a,user=\\xFF: an attribute is not valid UTF-8"
    );
}

#[test]
fn a_path_may_have_107_bytes() {
    let longest = format!("/{}", "x".repeat(106));
    assert_eq!(parse_paths(longest.as_ref()).unwrap().len(), 1);
    assert_eq!(
        parse_paths(format!("{longest},mode=0660,{longest}").as_ref())
            .unwrap()
            .len(),
        2
    );
    let failure = parse_paths(format!("{longest}x").as_ref()).unwrap_err();
    let cause = "the path of a unix socket has at most 107 bytes, this one has 108";
    assert_eq!(
        failure.to_string(),
        format!("cannot use --path={longest}x: {cause}")
    );
}

#[test]
fn what_begins_with_an_at_sign_is_an_abstract_name_and_nothing_else_is() {
    let name = |value: &str| {
        let specs = parse_paths(value.as_ref()).unwrap();
        specs[0].abstract_name().map(<[u8]>::to_vec)
    };
    assert_eq!(name("@a"), Some(b"a".to_vec()));
    assert_eq!(name("@/a,@b"), Some(b"/a,@b".to_vec()));
    for path in ["./@a", "/@a", "a@", "/a"] {
        assert_eq!(name(path), None, "{path}");
    }
    let longest = "x".repeat(LONGEST_PATH);
    assert_eq!(name(&format!("@{longest}")), Some(longest.clone().into()));
    let failure = parse_paths(format!("@{longest}x").as_ref()).unwrap_err();
    assert!(failure.to_string().ends_with("this one has 108"));
}

#[test]
fn what_is_no_path_is_refused_with_the_cause() {
    let separators = "a path cannot contain ; or =, which are separators in SERVER_STARTER_PORT";
    let mode = "a mode is an octal number from 0 to 0777";
    let follows =
        "the attributes are followed by neither an attribute nor a path that starts with /";
    let no_file =
        "an abstract socket is no file: it has neither mode nor owner (a file is written ./@name)";
    let unknown = "the attributes of a path are mode, user and group, not";
    for (value, given, cause) in [
        ("", "", "the path is empty"),
        (",mode=0660", ",mode=0660", "the path is empty"),
        ("/a;b", "/a;b", separators),
        ("/a=b", "/a=b", separators),
        ("mode=0660", "mode=0660", separators),
        ("/a,/b=c", "/b=c", separators),
        ("/a,b/c=d", "/a,b/c=d", separators),
        ("/a,=b", "/a,=b", separators),
        ("@", "@", "the name of an abstract socket follows @"),
        ("@a,mode=0660", "@a,mode=0660", no_file),
        ("@a,user=x", "@a,user=x", no_file),
        ("@a=b", "@a=b", separators),
        ("/a\nb", "/a\\x0Ab", "a path cannot contain a newline"),
        ("/a,mode=", "/a,mode=", mode),
        ("/a,mode=0888", "/a,mode=0888", mode),
        ("/a,mode=1000", "/a,mode=1000", mode),
        ("/a,mode=+660", "/a,mode=+660", mode),
        ("/a,mode=0o660", "/a,mode=0o660", mode),
        ("/a,mode=rw", "/a,mode=rw", mode),
        (
            "/a,mode=77777777777777777777",
            "/a,mode=77777777777777777777",
            mode,
        ),
        ("/a,/b,mode=9", "/b,mode=9", mode),
        ("/a,user=", "/a,user=", "user= is empty"),
        ("/a,group=", "/a,group=", "group= is empty"),
        (
            "/a,mode=0,mode=0",
            "/a,mode=0,mode=0",
            "mode= is given twice",
        ),
        (
            "/a,user=x,mode=1,user=y",
            "/a,user=x,mode=1,user=y",
            "user= is given twice",
        ),
        (
            "/a,group=x,group=x",
            "/a,group=x,group=x",
            "group= is given twice",
        ),
        ("/a,owner=x", "/a,owner=x", &format!("{unknown} owner")),
        ("/a,Mode=0660", "/a,Mode=0660", &format!("{unknown} Mode")),
        ("/a,mode=0660,b", "/a,mode=0660,b", follows),
        ("/a,mode=0660,", "/a,mode=0660,", follows),
        ("a,mode=0660,/b", "a,mode=0660,/b", follows),
    ] {
        let failure = parse_paths(value.as_ref()).expect_err(value);
        assert_eq!(
            failure.to_string(),
            format!("cannot use --path={given}: {cause}"),
            "{value:?}"
        );
        assert_eq!(failure.status, Status::Usage);
    }
}

fn duplicates(ports: &[&str], paths: &[&str]) -> Option<String> {
    let ports: Vec<_> = ports
        .iter()
        .flat_map(|value| parse_ports(value).unwrap())
        .collect();
    let paths: Vec<_> = paths
        .iter()
        .flat_map(|value| parse_paths(value.as_ref()).unwrap())
        .collect();
    check_duplicates(&ports, &paths)
        .err()
        .map(|failure| failure.to_string())
}

#[test]
fn what_can_be_bound_together_is_no_duplicate() {
    assert_eq!(duplicates(&[], &[]), None);
    assert_eq!(duplicates(&["0,0,u0", "0", "[::1]:0,[::1]:0"], &[]), None);
    assert_eq!(duplicates(&["53", "u53"], &["/a", "/b"]), None);
    assert_eq!(
        duplicates(
            &["127.0.0.1:80,127.0.0.2:80", "[::1]:80", "[::]:81", "81"],
            &[]
        ),
        None
    );
    assert_eq!(
        duplicates(&["80=4", "81=5", "82", "83"], &["/a,/a2", "a"]),
        None
    );
}

#[test]
fn the_same_address_descriptor_or_path_twice_is_refused() {
    for (ports, paths, message) in [
        (
            vec!["80", "80"],
            vec![],
            "cannot use --port=80: it is the same as --port=80",
        ),
        (
            vec!["80", "0.0.0.0:80"],
            vec![],
            "cannot use --port=0.0.0.0:80: it is the same as --port=80",
        ),
        (
            vec!["u53,81,*:u53"],
            vec![],
            "cannot use --port=*:u53: it is the same as --port=u53",
        ),
        (
            vec!["[::1]:80", "0::1:80=4"],
            vec![],
            "cannot use --port=0::1:80=4: it is the same as --port=[::1]:80",
        ),
        (
            vec!["Host:80", "host:80"],
            vec![],
            "cannot use --port=host:80: it is the same as --port=Host:80",
        ),
        (
            vec!["80=4", "u53=04"],
            vec![],
            "cannot use --port=u53=04: descriptor 4 is taken by --port=80=4",
        ),
        (
            vec![],
            vec!["/a", "/a"],
            "cannot use --path=/a: it is the same as --path=/a",
        ),
        (
            vec![],
            vec!["/a,mode=0600", "/./a"],
            "cannot use --path=/./a: it is the same as --path=/a,mode=0600",
        ),
    ] {
        assert_eq!(duplicates(&ports, &paths).as_deref(), Some(message));
    }
}
