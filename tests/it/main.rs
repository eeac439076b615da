//! The built program between real peers, from outside: what "Done" means.

mod admin;
mod anger;
mod clients;
mod demo;
mod dialogues;
mod directory;
mod fail2ban;
mod hostile;
mod image;
mod limits;
mod locations;
mod logins;
mod operate;
mod outage;
mod prov;
mod proxy_protocol;
mod scene;
mod sessions;
mod smuggling;
mod storms;
mod streams;
mod tls;
mod upstreams;
mod vhosts;
mod web;
