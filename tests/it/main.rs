//! The built program between real peers, from outside: what "Done" means.

mod admin;
mod clients;
mod demo;
mod dialogues;
mod hostile;
mod logins;
mod operate;
mod outage;
mod proxy_protocol;
mod scene;
mod sessions;
mod smuggling;
mod streams;
mod tls;
mod upstreams;
mod vhosts;
mod web;
