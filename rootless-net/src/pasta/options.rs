//! What follows `--network pasta:`, read: pasta's own options, separated by commas as in Podman.
//!
//! Every option is looked up in a table, since getopt would take `--netn` for `--netns`, `-fq` for
//! two options, and a word without a dash for a command to run.

/// One of pasta's options.
struct Known {
    long: &'static str,
    short: Option<char>,
    takes_value: bool,
    rule: Rule,
}

enum Rule {
    Pass,
    /// We say that already.
    Ours,
    /// Podman's word for leaving out `--no-map-gw`.
    MapGateway,
    Refuse(&'static str),
}

const fn known(long: &'static str, short: Option<char>, takes_value: bool, rule: Rule) -> Known {
    Known {
        long,
        short,
        takes_value,
        rule,
    }
}

const NAMESPACE: &str = "the container's network namespace is chosen by the engine";
const PROCESS: &str = "the engine watches pasta itself";
const LOG: &str = "what pasta says is kept by the engine, in bounds";
const VM: &str = "it is for virtual machines";
const HELP: &str = "it would only print something; run pasta yourself";

const KNOWN: &[Known] = &[
    known("--address", Some('a'), true, Rule::Pass),
    known("--config-net", None, false, Rule::Ours),
    known("--debug", Some('d'), false, Rule::Refuse(LOG)),
    known("--dhcp-dns", None, false, Rule::Pass),
    known("--dhcp-search", None, false, Rule::Pass),
    known("--dns", Some('D'), true, Rule::Pass),
    known("--dns-forward", None, true, Rule::Pass),
    known("--dns-host", None, true, Rule::Pass),
    known("--fd", Some('F'), true, Rule::Refuse(VM)),
    known("--foreground", Some('f'), false, Rule::Refuse(PROCESS)),
    known("--fqdn", None, true, Rule::Pass),
    known("--freebind", None, false, Rule::Pass),
    known("--gateway", Some('g'), true, Rule::Pass),
    known("--help", Some('h'), false, Rule::Refuse(HELP)),
    known("--host-lo-to-ns-lo", None, false, Rule::Pass),
    known("--hostname", Some('H'), true, Rule::Pass),
    known("--interface", Some('i'), true, Rule::Pass),
    known("--ipv4-only", Some('4'), false, Rule::Pass),
    known("--ipv6-only", Some('6'), false, Rule::Pass),
    known("--log-file", Some('l'), true, Rule::Refuse(LOG)),
    known("--log-size", None, true, Rule::Refuse(LOG)),
    known("--mac-addr", Some('M'), true, Rule::Pass),
    known("--map-guest-addr", None, true, Rule::Pass),
    known("--map-gw", None, false, Rule::MapGateway),
    known("--map-host-loopback", None, true, Rule::Pass),
    known("--mtu", Some('m'), true, Rule::Pass),
    known("--netmask", Some('n'), true, Rule::Pass),
    known("--netns", None, true, Rule::Refuse(NAMESPACE)),
    known("--netns-only", None, false, Rule::Refuse(NAMESPACE)),
    known("--no-copy-addrs", None, false, Rule::Pass),
    known("--no-copy-routes", None, false, Rule::Pass),
    known("--no-dhcp", None, false, Rule::Pass),
    known("--no-dhcp-dns", None, false, Rule::Pass),
    known("--no-dhcp-search", None, false, Rule::Pass),
    known("--no-dhcpv6", None, false, Rule::Pass),
    known("--no-icmp", None, false, Rule::Pass),
    known("--no-map-gw", None, false, Rule::Ours),
    known("--no-ndp", None, false, Rule::Pass),
    known("--no-netns-quit", None, false, Rule::Refuse(PROCESS)),
    known("--no-ra", None, false, Rule::Pass),
    known("--no-splice", None, false, Rule::Pass),
    known("--no-tcp", None, false, Rule::Pass),
    known("--no-udp", None, false, Rule::Pass),
    known("--ns-ifname", Some('I'), true, Rule::Pass),
    known("--ns-mac-addr", None, true, Rule::Pass),
    known("--one-off", Some('1'), false, Rule::Refuse(VM)),
    known("--outbound", Some('o'), true, Rule::Pass),
    known("--outbound-if4", None, true, Rule::Pass),
    known("--outbound-if6", None, true, Rule::Pass),
    known("--pcap", Some('p'), true, Rule::Pass),
    known("--pid", Some('P'), true, Rule::Refuse(PROCESS)),
    known("--quiet", Some('q'), false, Rule::Ours),
    known("--repair-path", None, true, Rule::Refuse(VM)),
    known("--runas", None, true, Rule::Refuse(PROCESS)),
    known("--search", Some('S'), true, Rule::Pass),
    known("--socket", Some('s'), true, Rule::Refuse(VM)),
    known("--socket-path", None, true, Rule::Refuse(VM)),
    known("--stderr", Some('e'), false, Rule::Refuse(LOG)),
    known("--tcp-ns", Some('T'), true, Rule::Pass),
    known("--tcp-ports", Some('t'), true, Rule::Pass),
    known("--trace", None, false, Rule::Refuse(LOG)),
    known("--udp-ns", Some('U'), true, Rule::Pass),
    known("--udp-ports", Some('u'), true, Rule::Pass),
    known("--userns", None, true, Rule::Refuse(NAMESPACE)),
    known("--version", None, false, Rule::Refuse(HELP)),
    known("--vhost-user", None, false, Rule::Refuse(VM)),
];

/// Why a text cannot follow `--network pasta:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOptions {
    /// pasta has no such option, or it is abbreviated.
    #[error("--network pasta: pasta has no option {0}; give its full name, see pasta(1)")]
    Unknown(String),
    /// An option that would break what the engine does.
    #[error("--network pasta: {option} cannot be given: {why}")]
    Refused {
        /// Its long name.
        option: &'static str,
        /// The reason.
        why: &'static str,
    },
    /// A value is missing.
    #[error("--network pasta: {0} needs a value behind it, as in {0},VALUE")]
    NoValue(&'static str),
    /// A value is given to an option that has none.
    #[error("--network pasta: {0} takes no value")]
    ValueForNone(&'static str),
    /// Something that is no option.
    #[error("--network pasta: {0:?} is no option; they begin with - and are separated by commas")]
    NoOption(String),
}

/// Options that may be passed on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Long names with values, in their order.
    given: Vec<(&'static str, Option<String>)>,
    /// `--map-gw`.
    pub(super) maps_gateway: bool,
}

impl std::str::FromStr for Options {
    type Err = BadOptions;

    /// Reads what follows the colon; nothing is no options.
    fn from_str(text: &str) -> Result<Self, BadOptions> {
        let mut options = Self::default();
        let mut words = text.split(',').filter(|word| !word.is_empty());
        while let Some(word) = words.next() {
            if word.starts_with("--") && word.len() > 2 {
                let (name, attached) = match word.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (word, None),
                };
                let option = find(|known| known.long == name, name)?;
                let value = match (option.takes_value, attached) {
                    (false, Some(_)) => return Err(BadOptions::ValueForNone(option.long)),
                    (true, None) => Some(words.next().ok_or(BadOptions::NoValue(option.long))?),
                    (_, attached) => attached,
                };
                options.add(option, value)?;
            } else if let Some(letters) = word.strip_prefix('-').filter(|rest| !rest.is_empty())
                && word != "--"
            {
                options.add_letters(letters, &mut words)?;
            } else {
                return Err(BadOptions::NoOption(word.to_owned()));
            }
        }
        Ok(options)
    }
}

fn find(is_it: impl Fn(&Known) -> bool, spelled: &str) -> Result<&'static Known, BadOptions> {
    KNOWN
        .iter()
        .find(|known| is_it(known))
        .ok_or_else(|| BadOptions::Unknown(spelled.to_owned()))
}

impl Options {
    /// `-4`, `-t80`, `-t` with the value behind it, `-4t80`.
    fn add_letters<'t>(
        &mut self,
        letters: &'t str,
        words: &mut impl Iterator<Item = &'t str>,
    ) -> Result<(), BadOptions> {
        for (at, letter) in letters.char_indices() {
            let option = find(|known| known.short == Some(letter), &format!("-{letter}"))?;
            if !option.takes_value {
                self.add(option, None)?;
                continue;
            }
            let rest = &letters[at + letter.len_utf8()..];
            let value = if rest.is_empty() {
                words.next().ok_or(BadOptions::NoValue(option.long))?
            } else {
                rest
            };
            return self.add(option, Some(value));
        }
        Ok(())
    }

    fn add(&mut self, option: &'static Known, value: Option<&str>) -> Result<(), BadOptions> {
        match option.rule {
            Rule::Pass => self.given.push((option.long, value.map(str::to_owned))),
            Rule::Ours => {}
            Rule::MapGateway => self.maps_gateway = true,
            Rule::Refuse(why) => {
                return Err(BadOptions::Refused {
                    option: option.long,
                    why,
                });
            }
        }
        Ok(())
    }

    pub(super) fn has(&self, long: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == long)
    }

    pub(super) fn values(&self, long: &str) -> impl Iterator<Item = &str> {
        self.given
            .iter()
            .filter(move |(given, _)| *given == long)
            .filter_map(|(_, value)| value.as_deref())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.given.iter().map(|(name, _)| *name)
    }

    pub(super) fn arguments(&self) -> impl Iterator<Item = String> {
        self.given.iter().map(|(name, value)| match value {
            // In one word, so that a value that begins with a dash stays one.
            Some(value) => format!("{name}={value}"),
            None => (*name).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arguments(text: &str) -> Result<Vec<String>, BadOptions> {
        text.parse::<Options>()
            .map(|options| options.arguments().collect())
    }

    #[test]
    fn podmans_examples() {
        // From podman-run(1).
        let slirp = "--ipv4-only,-a,10.0.2.0,-n,24,-g,10.0.2.2,--dns-forward,10.0.2.3,-m,1500,\
                     --no-ndp,--no-dhcpv6,--no-dhcp";
        assert_eq!(
            arguments(slirp).unwrap(),
            [
                "--ipv4-only",
                "--address=10.0.2.0",
                "--netmask=24",
                "--gateway=10.0.2.2",
                "--dns-forward=10.0.2.3",
                "--mtu=1500",
                "--no-ndp",
                "--no-dhcpv6",
                "--no-dhcp"
            ]
        );
        assert_eq!(
            arguments("-t,auto,-u,auto,-T,auto,-U,auto").unwrap(),
            [
                "--tcp-ports=auto",
                "--udp-ports=auto",
                "--tcp-ns=auto",
                "--udp-ns=auto"
            ]
        );
        let map: Options = "--map-gw".parse().unwrap();
        assert!(map.maps_gateway);
        assert_eq!(map.arguments().count(), 0);
        assert_eq!(arguments("").unwrap(), [""; 0]);
    }

    #[test]
    fn getopt_has_no_back_doors() {
        for text in [
            "--netns,/proc/1/ns/net",
            "--netns=/proc/1/ns/net",
            "-4f",
            "-f",
            "-P,/tmp/x",
            "-P/tmp/x",
            "-4P/tmp/x",
            "--pid=x",
            "-d",
            "-l,/tmp/x",
            "--userns=x",
            "--runas,0",
            "--no-netns-quit",
        ] {
            assert!(
                matches!(arguments(text), Err(BadOptions::Refused { .. })),
                "{text}: {:?}",
                arguments(text)
            );
        }
        for text in ["--netn,x", "--frobnicate", "-z", "--log", "--map-g"] {
            assert!(
                matches!(arguments(text), Err(BadOptions::Unknown(_))),
                "{text}"
            );
        }
        for text in ["sh", "--,sh", "-4,1234", "-", "--ipv4-only,sh"] {
            assert!(
                matches!(arguments(text), Err(BadOptions::NoOption(_))),
                "{text}"
            );
        }
        assert_eq!(arguments("-a"), Err(BadOptions::NoValue("--address")));
        assert_eq!(
            arguments("--ipv4-only=1"),
            Err(BadOptions::ValueForNone("--ipv4-only"))
        );
        // What looks like an option is a value where one is wanted.
        assert_eq!(arguments("-S,--netns").unwrap(), ["--search=--netns"]);
    }

    proptest! {
        #[test]
        fn nothing_refused_gets_through(text in "[-=,a-zA-Z0-9 é]{0,40}") {
            if let Ok(given) = arguments(&text) {
                for argument in given {
                    let name = argument.split('=').next().unwrap();
                    let option = KNOWN.iter().find(|known| known.long == name);
                    prop_assert!(matches!(option, Some(Known { rule: Rule::Pass, .. })), "{argument}");
                }
            }
        }
    }
}
