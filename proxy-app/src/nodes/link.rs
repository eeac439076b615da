//! The task that speaks with the engine: it joins, says again and again that this node is there, hears the others, and
//! begins anew when the engine fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::certificates::CHALLENGES;
use super::engine::{Engine, Failure, Message, QUEUE, words};
use super::sessions::Change;
use super::wire::{self, Beat, Order, Reply};
use super::{ANSWERS, Clock, LONGEST_ACT, Local, Nodes, Standing, State};

/// How often a node says that it is there. With the wait for an answer it is less than a second.
const BEAT: Duration = Duration::from_millis(500);
/// The pause before the engine is tried again, and the longest one.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Sessions that begin and end within this time are told together.
const TOGETHER: Duration = Duration::from_millis(20);
/// Every so many beats it is looked for orders that were not heard.
const CATCH_UP: u32 = 20;
/// A process that was stopped for so long has heard orders whose nodes have given up waiting.
const STOPPED: Duration = Duration::from_secs(3);
/// So many milliseconds, and the clocks of the machines differ: answers are not that late.
const SKEW: u64 = 2_000;
/// How often the log says that the engine is away.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

impl Nodes {
    /// Speaks with the engine until it is dropped.
    pub(crate) async fn follow(self: Arc<Self>, local: Arc<dyn Local>) {
        let mut pause = PAUSE;
        let mut first = 0;
        let news = News::default();
        loop {
            let (sender, mut messages) = mpsc::channel(QUEUE);
            let failure = match self.dialer.connect(first, &sender).await {
                Ok(engine) => {
                    // From here on the channel ends with the connection.
                    drop(sender);
                    pause = PAUSE;
                    self.serve(Arc::new(engine), &mut messages, &local, &news).await
                }
                Err(failure) => {
                    first += 1;
                    failure
                }
            };
            self.alone(&failure, &news);
            sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Until the engine fails.
    async fn serve(
        self: &Arc<Self>,
        engine: Arc<Engine>,
        messages: &mut mpsc::Receiver<Message>,
        local: &Arc<dyn Local>,
        news: &News,
    ) -> Failure {
        if let Err(failure) = self.join(&engine, local, news).await {
            return failure;
        }
        let mut ticks = interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut beats) = (Instant::now(), 0_u32);
        loop {
            let woken = tokio::select! {
                _ = ticks.tick() => Woken::Beat,
                () = self.news.notified() => Woken::News,
                message = messages.recv() => Woken::Message(message),
            };
            if last.elapsed() > STOPPED {
                return Failure(format!("this process was stopped for {} s", last.elapsed().as_secs()));
            }
            beats = beats.wrapping_add(u32::from(matches!(woken, Woken::Beat)));
            let done = match woken {
                Woken::Beat => {
                    let catch_up = beats.is_multiple_of(CATCH_UP) || engine.lost() > 0;
                    self.tick(&engine, local, catch_up).await
                }
                Woken::News => {
                    sleep(TOGETHER).await;
                    self.tell(&engine).await
                }
                Woken::Message(Some((channel, text))) => {
                    self.hear(&engine, &channel, &text, local);
                    Ok(())
                }
                Woken::Message(None) => Err(Failure("the connection has ended".to_owned())),
            };
            if let Err(failure) = done {
                return failure;
            }
            last = Instant::now();
        }
    }

    /// Tells what has happened here.
    async fn tell(&self, engine: &Engine) -> Result<(), Failure> {
        self.tell_sessions(engine).await?;
        self.tell_guesses(engine).await
    }

    async fn join(&self, engine: &Arc<Engine>, local: &Arc<dyn Local>, news: &News) -> Result<(), Failure> {
        engine.subscribe(&self.names().orders()).await?;
        engine.subscribe(&self.names().answers(&self.run)).await?;
        engine.subscribe(&self.names().changes()).await?;
        let mut time = redis::pipe();
        time.cmd("TIME");
        let now = engine.run(&time).await?.pop().and_then(wire::time);
        self.state.lock().set_clock(now)?;
        self.tell_all_sessions(engine).await?;
        self.beat(engine, local).await?;
        self.catch_up(engine, local).await?;
        self.follow_sessions(engine).await?;
        self.share_tickets(engine).await?;
        let _its_node_has_been_told = self.read_challenges(engine).await?;
        let mut state = self.state.lock();
        state.engine = Some(engine.clone());
        state.with_engine = Standing::Joined {
            engine: engine.place.to_string(),
            since: Timestamp::now(),
        };
        news.joined(&engine.place.to_string());
        Ok(())
    }

    async fn tick(&self, engine: &Engine, local: &Arc<dyn Local>, catch_up: bool) -> Result<(), Failure> {
        self.beat(engine, local).await?;
        self.write_standing(engine).await?;
        self.tell_guesses(engine).await?;
        self.read_guesses(engine).await?;
        self.follow_sessions(engine).await?;
        self.share_new_tickets(engine).await?;
        self.look_at_turns(engine).await?;
        if catch_up {
            self.catch_up(engine, local).await?;
            self.share_tickets(engine).await?;
            let _its_node_has_been_told = self.read_challenges(engine).await?;
        }
        Ok(())
    }

    /// Reads what stands on all nodes: orders may have been given while this one did not hear.
    async fn catch_up(&self, engine: &Engine, local: &Arc<dyn Local>) -> Result<(), Failure> {
        let mut commands = redis::pipe();
        commands.cmd("HGETALL").arg(self.names().standing());
        let answer = engine.run(&commands).await?.pop().unwrap_or(redis::Value::Nil);
        let adopted = {
            let mut state = self.state.lock();
            let (now, ahead) = (state.clock.now(), state.clock.ahead());
            for order in local.standing() {
                state.standing.remember(order.shifted(ahead.saturating_neg()), now);
            }
            let adopted = state.standing.take(wire::pairs(answer), now).into_iter();
            adopted.map(|order| order.shifted(ahead)).collect::<Vec<_>>()
        };
        if !adopted.is_empty() {
            local.adopt(adopted).await;
        }
        self.write_standing(engine).await
    }

    async fn write_standing(&self, engine: &Engine) -> Result<(), Failure> {
        let unwritten = {
            let state = self.state.lock();
            state.standing.unwritten(state.clock.now())
        };
        let Some((fields, seconds)) = unwritten else {
            return Ok(());
        };
        let standing = self.names().standing();
        let mut commands = redis::pipe();
        commands.cmd("HSET").arg(&standing).arg(&fields);
        commands.cmd("EXPIRE").arg(&standing).arg(seconds);
        engine.run(&commands).await?;
        self.state.lock().standing.written(&fields);
        Ok(())
    }

    /// Says that this node is there, and hears who else is.
    async fn beat(&self, engine: &Engine, local: &Arc<dyn Local>) -> Result<(), Failure> {
        let report = local.report();
        let now = self.state.lock().clock.now();
        let beat = Beat::new(
            &self.node,
            self.version,
            report.state,
            self.since,
            report.generation,
            (report.sessions, self.own.lock().number()),
            now,
        );
        let nodes = self.names().nodes();
        let mut commands = redis::pipe();
        commands.cmd("HSET").arg(&nodes).arg(&self.run).arg(wire::text(&beat));
        commands.cmd("EXPIRE").arg(&nodes).arg(wire::KEPT);
        commands
            .cmd("EXPIRE")
            .arg(self.names().sessions(&self.run))
            .arg(wire::SESSIONS_KEPT);
        commands.cmd("TIME");
        commands.cmd("HGETALL").arg(&nodes);
        let mut answers = engine.run(&commands).await?.into_iter().skip(2);
        let lost = answers.next() == Some(redis::Value::Int(0));
        let (time, list) = (answers.next().and_then(wire::time), answers.next());
        let gone = {
            let mut state = self.state.lock();
            state.set_clock(time)?;
            let now = state.clock.now();
            state.members.take(wire::pairs(list.unwrap_or(redis::Value::Nil)), now)
        };
        if lost {
            self.tell_all_sessions(engine).await?;
        }
        if gone.is_empty() {
            return Ok(());
        }
        let mut commands = redis::pipe();
        commands.cmd("HDEL").arg(&nodes).arg(gone);
        engine.run(&commands).await.map(drop)
    }

    /// Takes a message of another node. It does not wait.
    fn hear(self: &Arc<Self>, engine: &Arc<Engine>, channel: &[u8], text: &[u8], local: &Arc<dyn Local>) {
        let names = self.names();
        let understood = match channel {
            channel if channel == names.orders().as_bytes() => {
                wire::read::<Order>(text, wire::MESSAGE_MAX).map(|order| self.obey(engine, order, local))
            }
            channel if channel == names.answers(&self.run).as_bytes() => {
                wire::read::<Reply>(text, wire::MESSAGE_MAX).map(|reply| self.take_reply(reply))
            }
            channel if channel == names.changes().as_bytes() => {
                wire::read::<Change>(text, wire::MESSAGE_MAX).map(|change| self.take_change(&change))
            }
            _ => None,
        };
        if understood.is_none() {
            self.unfit.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take_reply(&self, mut reply: Reply) {
        reply.answer = reply.answer.map_err(|why| words(&why));
        let asked = self.asked.lock().get(&reply.id).cloned();
        // What finds no room came from a node that answers more than once.
        asked.map(|waits| waits.try_send(reply));
    }

    fn obey(self: &Arc<Self>, engine: &Arc<Engine>, order: Order, local: &Arc<dyn Local>) {
        let is_ours = order.to.as_ref().is_none_or(|to| *to == self.node);
        if order.from == self.run || !is_ours || !super::members::is_run(&order.from) {
            return;
        }
        // Its node has given up waiting, and may have ordered otherwise since: this process was stopped, or is slow.
        let age = Duration::from_millis(self.state.lock().clock.now().saturating_sub(order.at));
        if order.at != 0 && age > ANSWERS {
            return log::debug!(
                "an order of {} is {} ms late: {}",
                order.node,
                age.as_millis(),
                order.verb
            );
        }
        let places = match local.is_long(&order.verb) {
            true => &self.acting_long,
            false => &self.acting,
        };
        let place = places.clone().try_acquire_owned();
        let (nodes, engine, local) = (self.clone(), engine.clone(), local.clone());
        tokio::spawn(async move {
            let answer = match place {
                Err(_) => Err("it has too much to do".to_owned()),
                Ok(_place) => timeout(LONGEST_ACT, nodes.carry_out(&engine, &local, &order))
                    .await
                    .unwrap_or_else(|_| Err("it took too long".to_owned())),
            };
            let reply = Reply::new(&order.id, &nodes.run, answer);
            let channel = nodes.names().answers(&order.from);
            if let Err(failure) = nodes.publish(&engine, &channel, &reply).await {
                let long = Reply::new(
                    &order.id,
                    &nodes.run,
                    Err(format!("its answer cannot be sent: {failure}")),
                );
                let _the_engine_is_gone = nodes.publish(&engine, &channel, &long).await;
            }
        });
    }

    async fn carry_out(
        &self,
        engine: &Engine,
        local: &Arc<dyn Local>,
        order: &Order,
    ) -> Result<serde_json::Value, String> {
        if order.verb == CHALLENGES {
            let answered = self
                .read_challenges(engine)
                .await
                .map_err(|failure| failure.to_string())?;
            return answered.map(|()| serde_json::Value::Null);
        }
        local.act(&order.node, &order.verb, order.body.clone()).await
    }

    /// From here on this node is alone.
    fn alone(&self, failure: &Failure, news: &News) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.forget_sessions();
        self.lose_turns();
        let mut state = self.state.lock();
        state.engine = None;
        let since = match &state.with_engine {
            Standing::Alone { since, .. } => *since,
            Standing::Joined { .. } => Timestamp::now(),
        };
        state.with_engine = Standing::Alone {
            why: failure.0.clone(),
            since,
        };
        drop(state);
        news.alone(failure);
    }
}

impl State {
    fn set_clock(&mut self, time: Option<u64>) -> Result<(), Failure> {
        let engine = time.ok_or_else(|| Failure("it does not tell the time".to_owned()))?;
        self.clock = Clock {
            engine,
            heard: Instant::now(),
        };
        self.look_at_clock();
        Ok(())
    }

    /// Says once that the clocks differ.
    fn look_at_clock(&mut self) {
        let ahead = self.clock.ahead();
        let is_skewed = ahead.unsigned_abs() > if self.skewed { SKEW / 2 } else { SKEW };
        if is_skewed && !self.skewed {
            log::warn!("the clock of this machine is {ahead} ms ahead of that of shared_state");
        }
        self.skewed = is_skewed;
    }
}

/// What there is to do.
enum Woken {
    /// To say that this node is there.
    Beat,
    /// To tell of sessions.
    News,
    /// To hear another node; `None`: the connection has ended.
    Message(Option<Message>),
}

/// What the log says of the engine: that it is away, once, and that it is back.
#[derive(Default)]
struct News(Mutex<LogState>);

#[derive(Default)]
struct LogState {
    away: bool,
    at: Option<Instant>,
}

impl News {
    fn alone(&self, failure: &Failure) {
        let mut said = self.0.lock();
        let is_due = said.at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if said.away || !is_due {
            return log::debug!("shared_state: {failure}");
        }
        (said.away, said.at) = (true, Some(Instant::now()));
        log::warn!("shared_state is away, this node goes on alone: {failure}");
    }

    fn joined(&self, place: &str) {
        let mut said = self.0.lock();
        if said.away || said.at.is_none() {
            log::info!("shared_state: this node has joined the others at {place}");
        }
        said.away = false;
    }
}
