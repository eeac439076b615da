//! Attributes of Carbonio's and Zimbra's proxy that mean nothing here, and why.
//!
//! They may stand in any directory without a warning, except where one was set to protect something. An attribute
//! that gets a meaning moves from here to the table of all attributes.

/// Names that are ignored for one reason.
pub(super) struct Ignored {
    pub(super) names: &'static [&'static str],
    pub(super) why: &'static str,
}

/// The attribute is one that is ignored, in any case.
pub(super) fn is_ignored(name: &str) -> bool {
    let mut names = IGNORED.iter().flat_map(|ignored| ignored.names);
    names.any(|ignored| ignored.eq_ignore_ascii_case(name))
}

/// Attributes that protect something in Carbonio or Zimbra, and the value with which they do not: their default
/// there.
pub(super) static PROTECTING: &[(&str, &str)] = &[
    ("zimbraReverseProxyImapSaslGssapiEnabled", "FALSE"),
    ("zimbraReverseProxyPop3SaslGssapiEnabled", "FALSE"),
];

/// Why an attribute that was set to protect something has no effect here.
pub(super) fn protects_in_vain(name: &str, values: &[String]) -> Option<&'static str> {
    let (name, unset) = PROTECTING.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
    let is_set = values.iter().any(|value| !value.trim().eq_ignore_ascii_case(unset));
    let ignored = IGNORED.iter().find(|ignored| ignored.names.contains(name))?;
    is_set.then_some(ignored.why)
}

/// MAIL §6, HTTP §9.
pub(super) static IGNORED: &[Ignored] = &[
    Ignored {
        names: &[
            "zimbraReverseProxyWorkerProcesses",
            "zimbraReverseProxyWorkerConnections",
            "zimbraReverseProxyAcceptMutex",
            "zimbraReverseProxyUpstreamFairShmSize",
        ],
        why: "There is one process, without workers: threads and limits are in the node file.",
    },
    Ignored {
        names: &["zimbraReverseProxyLogLevel"],
        why: "Logging is configured in the node file.",
    },
    Ignored {
        names: &[
            "zimbraReverseProxySNIEnabled",
            "zimbraReverseProxyGenConfigPerVirtualHostname",
        ],
        why: "Certificates are always selected by server name, and virtual hosts always supported.",
    },
    Ignored {
        names: &["zimbraReverseProxySSLECDHCurve", "zimbraSSLDHParam"],
        why: "The TLS library chooses the key exchange.",
    },
    Ignored {
        names: &[
            "zimbraReverseProxySSLSessionTimeout",
            "zimbraReverseProxySSLSessionCacheSize",
        ],
        why: "Sessions are resumed by tickets, not by a server-side cache.",
    },
    Ignored {
        names: &["zimbraReverseProxyAdminEnabled", "zimbraAdminProxyPort"],
        why: "The administration console is at `carbonioAdminProxyPort`.",
    },
    Ignored {
        names: &["zimbraReverseProxyExactServerVersionCheck"],
        why: "Versions of mailbox servers are not compared.",
    },
    Ignored {
        names: &["zimbraReverseProxyIPThrottleWhitelistTime"],
        why: "A list of networks takes effect as soon as it is read.",
    },
    Ignored {
        names: &["zimbraReverseProxyRouteLookupTimeout"],
        why: "`directory.lookup.timeout` of the node file applies.",
    },
    Ignored {
        names: &["zimbraReverseProxyCacheFetchTimeout"],
        why: "`route_cache.memcached.timeout` of the node file applies: with the usual 3 seconds of this attribute, a frozen memcached would delay a login more than the directory does.",
    },
    Ignored {
        names: &[
            "zimbraReverseProxyMailHostQuery",
            "zimbraReverseProxyMailHostSearchBase",
            "zimbraReverseProxyPortQuery",
            "zimbraReverseProxyPortSearchBase",
            "zimbraReverseProxyDomainNameQuery",
            "zimbraReverseProxyDomainNameSearchBase",
            "zimbraReverseProxyDomainNameAttribute",
        ],
        why: "Accounts are found by address, alias and id, servers by name, domains by virtual address: filters in the directory are not used.",
    },
    Ignored {
        names: &[
            "zimbraReverseProxyImapSaslGssapiEnabled",
            "zimbraReverseProxyPop3SaslGssapiEnabled",
            "zimbraReverseProxyDefaultRealm",
            "zimbraReverseProxyAdminIPAddress",
        ],
        why: "Logins with Kerberos are not offered.",
    },
    Ignored {
        names: &[
            "zimbraMtaAuthTarget",
            "zimbraLmtpBindPort",
            "zimbraSmtpPort",
            "zimbraImapCleartextLoginEnabled",
            "zimbraPop3CleartextLoginEnabled",
            "zimbraMailTrustedIP",
        ],
        why: "For other programs of the mail system.",
    },
    Ignored {
        names: &[
            "zimbraMemcachedBindAddress",
            "zimbraMemcachedBindPort",
            "zimbraMemcachedClientServerList",
            "zimbraMemcachedClientBinaryProtocolEnabled",
            "zimbraMemcachedClientHashAlgorithm",
            "zimbraMemcachedClientExpirySeconds",
            "zimbraMemcachedClientTimeoutMillis",
            "carbonioMemcachedEndpoint",
        ],
        why: "The mailbox server's own memcached. That of the proxies is in `route_cache.memcached.servers` of the node file.",
    },
    Ignored {
        names: &[
            "zimbraReverseProxyInactivityTimeout",
            "zimbraReverseProxyUpstreamServers",
            "zimbraReverseProxyUpstreamImapServers",
            "zimbraReverseProxyDnsLookupInServerEnabled",
            "zimbraReverseProxyErrorHandlerURL",
            "zimbraFileUploadMaxSize",
            "zimbraReverseProxyXmppBoshEnabled",
            "zimbraReverseProxyXmppBoshHostname",
            "zimbraReverseProxyXmppBoshLocalHttpBindURL",
            "zimbraReverseProxyXmppBoshPort",
            "zimbraReverseProxyXmppBoshSSL",
            "zimbraReverseProxyXmppBoshTimeout",
        ],
        why: "Without effect in the proxy of Carbonio, too.",
    },
];
