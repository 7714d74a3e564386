//! `--userns`, `--uidmap`, `--gidmap`.

use selkie_engine::options::UsernsMode;

use crate::error::{CliError, Result};

const MODES: &str = "choose from auto[:size=N], keep-id[:uid=N,gid=N,size=N], host, nomap";

/// What the three flags mean together.
pub fn parse(mode: Option<&str>, uid_maps: &[String], gid_maps: &[String]) -> Result<UsernsMode> {
    if uid_maps.is_empty() && gid_maps.is_empty() {
        return parse_mode(mode.unwrap_or_default());
    }
    if mode.is_some_and(|mode| !mode.is_empty()) {
        return Err(CliError::new(
            "--userns and --uidmap/--gidmap exclude each other",
        ));
    }
    let uid = parse_maps("uidmap", uid_maps)?;
    let gid = parse_maps("gidmap", gid_maps)?;
    // As in Podman, one map given alone stands for both.
    Ok(match (uid.is_empty(), gid.is_empty()) {
        (true, _) => UsernsMode::Maps {
            uid: gid.clone(),
            gid,
        },
        (_, true) => UsernsMode::Maps {
            gid: uid.clone(),
            uid,
        },
        _ => UsernsMode::Maps { uid, gid },
    })
}

fn parse_mode(text: &str) -> Result<UsernsMode> {
    let (name, options) = text.split_once(':').unwrap_or((text, ""));
    let refuse =
        |why: String| Err(CliError::new(format!("--userns {text}: {why}")).with_hint(MODES));
    match name {
        "" if text.is_empty() => Ok(UsernsMode::AutoDefault),
        "auto" => {
            let mut size = None;
            for (key, value) in key_values(text, options)? {
                match key {
                    "size" => size = Some(positive(text, key, value)?),
                    "uidmapping" | "gidmapping" => {
                        return refuse(format!("{key} is not offered; use --uidmap and --gidmap"));
                    }
                    _ => return refuse(format!("auto has no option {key}")),
                }
            }
            Ok(UsernsMode::Auto { size })
        }
        "keep-id" => {
            let (mut uid, mut gid, mut size) = (None, None, None);
            for (key, value) in key_values(text, options)? {
                match key {
                    "uid" => uid = Some(id(text, key, value)?),
                    "gid" => gid = Some(id(text, key, value)?),
                    "size" => size = Some(positive(text, key, value)?),
                    _ => return refuse(format!("keep-id has no option {key}")),
                }
            }
            Ok(UsernsMode::KeepId { uid, gid, size })
        }
        "host" | "nomap" if !options.is_empty() => refuse(format!("{name} has no options")),
        "host" => Ok(UsernsMode::Host),
        "nomap" => Ok(UsernsMode::Nomap),
        "container" | "ns" => {
            refuse("sharing another user namespace is not offered yet".to_owned())
        }
        _ => refuse("no such mode".to_owned()),
    }
}

fn key_values<'a>(text: &str, options: &'a str) -> Result<Vec<(&'a str, &'a str)>> {
    options
        .split(',')
        .filter(|option| !option.is_empty())
        .map(|option| {
            option.split_once('=').ok_or_else(|| {
                CliError::new(format!("--userns {text}: {option:?} lacks a value")).with_hint(MODES)
            })
        })
        .collect()
}

fn id(text: &str, key: &str, value: &str) -> Result<u32> {
    match value.parse::<u32>() {
        // The largest value means "no ID" to the kernel.
        Ok(id) if id < u32::MAX => Ok(id),
        _ => Err(CliError::new(format!(
            "--userns {text}: {key}={value} is not an ID"
        ))),
    }
}

fn positive(text: &str, key: &str, value: &str) -> Result<u32> {
    match value.parse::<u32>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(CliError::new(format!(
            "--userns {text}: {key}={value} is not a number of IDs"
        ))),
    }
}

fn parse_maps(flag: &str, texts: &[String]) -> Result<Vec<(u32, u32, u32)>> {
    texts
        .iter()
        .flat_map(|text| text.split(','))
        .map(|text| parse_map(flag, text))
        .collect()
}

fn parse_map(flag: &str, text: &str) -> Result<(u32, u32, u32)> {
    let refuse = || {
        CliError::new(format!("--{flag} {text}: not an ID map")).with_hint(
            "write CONTAINER_ID:INTERMEDIATE_ID:COUNT, where intermediate ID 0 is you and 1 your \
             first subordinate ID",
        )
    };
    let mut fields = text
        .split(':')
        .map(|field| field.parse::<u32>().map_err(|_| refuse()));
    let (Some(inside), Some(outside), Some(count)) = (fields.next(), fields.next(), fields.next())
    else {
        return Err(refuse());
    };
    let (inside, outside, count) = (inside?, outside?, count?);
    if fields.next().is_some()
        || count == 0
        || inside.checked_add(count).is_none()
        || outside.checked_add(count).is_none()
    {
        return Err(refuse());
    }
    Ok((inside, outside, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mode(text: &str) -> UsernsMode {
        parse(Some(text), &[], &[]).unwrap()
    }

    #[test]
    fn modes() {
        assert_eq!(parse(None, &[], &[]).unwrap(), UsernsMode::AutoDefault);
        assert_eq!(mode(""), UsernsMode::AutoDefault);
        assert_eq!(mode("auto"), UsernsMode::Auto { size: None });
        assert_eq!(
            mode("auto:size=4096"),
            UsernsMode::Auto { size: Some(4096) }
        );
        assert_eq!(
            mode("keep-id:uid=33,gid=34,size=100"),
            UsernsMode::KeepId {
                uid: Some(33),
                gid: Some(34),
                size: Some(100)
            }
        );
        assert_eq!(
            mode("keep-id"),
            UsernsMode::KeepId {
                uid: None,
                gid: None,
                size: None
            }
        );
        assert_eq!(mode("host"), UsernsMode::Host);
        assert_eq!(mode("nomap"), UsernsMode::Nomap);
    }

    #[test]
    fn refused_modes() {
        for bad in [
            "foo",
            "auto:size=0",
            "auto:size=x",
            "auto:size",
            "auto:foo=1",
            "keep-id:uid=-1",
            "keep-id:uid=4294967295",
            "host:x=1",
            "container:abc",
            "ns:/proc/1/ns/user",
            ":",
        ] {
            assert!(parse(Some(bad), &[], &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn maps() {
        let map = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            parse(None, &map(&["0:1:1000", "1000:0:1"]), &map(&["0:1:5"])).unwrap(),
            UsernsMode::Maps {
                uid: vec![(0, 1, 1000), (1000, 0, 1)],
                gid: vec![(0, 1, 5)]
            }
        );
        assert_eq!(
            parse(None, &[], &map(&["0:1:1"])).unwrap(),
            UsernsMode::Maps {
                uid: vec![(0, 1, 1)],
                gid: vec![(0, 1, 1)]
            }
        );
        for bad in [
            "",
            "0",
            "0:1",
            "0:1:0",
            "0:1:2:3",
            "x:1:2",
            "0:4294967295:1",
            "+0:@1:1",
        ] {
            assert!(parse(None, &map(&[bad]), &[]).is_err(), "{bad}");
        }
        assert!(parse(Some("auto"), &map(&["0:1:1"]), &[]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".*", map in "[0-9:,]*") {
            let _ = parse(Some(&text), &[], &[]);
            let _ = parse(None, &[map], &[]);
        }
    }
}
