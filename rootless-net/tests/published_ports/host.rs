//! The forwarder at work on a host: a thread with its runtime and no capabilities.

use std::thread::JoinHandle;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use selkie_net::forwarder::{
    Forwarder, HostTables, Limits, PublishError, Sources, Target, UplinkSockets,
};
use selkie_net::port_mapping::{PortMapping, Protocol};
use tokio::sync::{mpsc, oneshot};

use crate::lab::Lab;

enum Order {
    Publish(
        String,
        Vec<PortMapping>,
        Target,
        oneshot::Sender<Result<(), PublishError>>,
    ),
    Retarget(String, Target, oneshot::Sender<()>),
    UnpublishMapping(String, PortMapping, oneshot::Sender<bool>),
    Unpublish(String, oneshot::Sender<()>),
}

/// Gives orders to the thread; it ends with this.
pub struct Host {
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    pub fn new(lab: &Lab) -> Self {
        Self::with_limits(lab, Limits::default())
    }

    pub fn with_limits(lab: &Lab, limits: Limits) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (host, uplink) = (lab.host.namespace(), lab.uplink.namespace());
        let thread = std::thread::spawn(move || {
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&host), network)
                .unwrap();
            let sockets = UplinkSockets::start(uplink, Sources::Any).unwrap();
            let none = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            set_capabilities(None, none).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve(inbox, sockets, limits));
        });
        Self {
            orders: Some(orders),
            thread: Some(thread),
        }
    }

    fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> T {
        let (sender, answer) = oneshot::channel();
        assert!(self.orders.as_ref().unwrap().send(order(sender)).is_ok());
        answer.blocking_recv().unwrap()
    }

    pub fn publish(
        &self,
        container: &str,
        mappings: &[PortMapping],
        target: Target,
    ) -> Result<(), PublishError> {
        self.order(|answer| Order::Publish(container.into(), mappings.into(), target, answer))
    }

    pub fn retarget(&self, container: &str, target: Target) {
        self.order(|answer| Order::Retarget(container.into(), target, answer));
    }

    pub fn unpublish_mapping(&self, container: &str, mapping: &PortMapping) -> bool {
        self.order(|answer| Order::UnpublishMapping(container.into(), mapping.clone(), answer))
    }

    pub fn unpublish(&self, container: &str) {
        self.order(|answer| Order::Unpublish(container.into(), answer));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.orders = None;
        let ended = self.thread.take().unwrap().join();
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "the forwarder panicked"
        );
    }
}

async fn serve(mut inbox: mpsc::UnboundedReceiver<Order>, sockets: UplinkSockets, limits: Limits) {
    let mut forwarder = Forwarder::new(sockets, HostTables::open(), limits).unwrap();
    while let Some(order) = inbox.recv().await {
        match order {
            Order::Publish(container, mappings, target, answer) => {
                let _ = answer.send(forwarder.publish(&container, &mappings, target));
            }
            Order::Retarget(container, target, answer) => {
                forwarder.retarget(&container, target);
                let _ = answer.send(());
            }
            Order::UnpublishMapping(container, mapping, answer) => {
                let _ = answer.send(forwarder.unpublish_mapping(&container, &mapping).await);
            }
            Order::Unpublish(container, answer) => {
                forwarder.unpublish(&container).await;
                let _ = answer.send(());
            }
        }
    }
}

/// One port, on all addresses.
pub fn mapping(protocol: Protocol, host_port: u16, container_port: u16) -> PortMapping {
    PortMapping {
        host_ip: None,
        host_port,
        container_port,
        count: 1,
        protocol,
    }
}
