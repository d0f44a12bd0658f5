//! What is read of the API's objects, the few fields that are needed, so that nothing else is decoded; and what is kept.

use std::collections::BTreeMap;
use std::fmt::Debug;

use kube::Resource;
use kube::api::ObjectMeta;
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Namespace {
    pub(super) metadata: ObjectMeta,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct EndpointSlice {
    pub(super) metadata: ObjectMeta,
    /// `null` where there are none.
    pub(super) endpoints: Option<Vec<Endpoint>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    pub(super) node_name: Option<String>,
    pub(super) target_ref: Option<TargetRef>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct TargetRef {
    pub(super) kind: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
}

macro_rules! resource {
    ($of:ty, $scope:ty, $kind:literal, $plural:literal, $group:literal) => {
        impl Resource for $of {
            type DynamicType = ();
            type Scope = $scope;

            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }

            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }

            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(Namespace, ClusterResourceScope, "Namespace", "namespaces", "");
resource!(EndpointSlice, NamespaceResourceScope, "EndpointSlice", "endpointslices", "discovery.k8s.io");

pub(super) type Labels = BTreeMap<String, String>;

/// Of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    /// NAMESPACE/NAME of the Service.
    pub(super) service: String,
    /// NAMESPACE/NAME of each pod behind it.
    pub(super) pods: Vec<String>,
}

/// A kind of object that is followed.
pub(super) trait Followed:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    type Kept: PartialEq + Send + Sync + 'static;
    /// As RBAC has it.
    const WHAT: &str;

    /// The name that it is kept by, and what is kept.
    fn keep(self, node: Option<&str>) -> (String, Option<Self::Kept>);
}

impl Followed for Namespace {
    type Kept = Labels;
    const WHAT: &str = "namespaces";

    fn keep(self, _: Option<&str>) -> (String, Option<Labels>) {
        (self.metadata.name.unwrap_or_default(), Some(self.metadata.labels.unwrap_or_default()))
    }
}

impl Followed for EndpointSlice {
    type Kept = Backing;
    const WHAT: &str = "endpointslices.discovery.k8s.io";

    /// Nothing of a slice without pods of this node. Ready or not is the same: a pod that is slow is not to be
    /// detached.
    fn keep(self, node: Option<&str>) -> (String, Option<Backing>) {
        let space = self.metadata.namespace.unwrap_or_default();
        let name = format!("{space}/{}", self.metadata.name.unwrap_or_default());
        let Some(service) = self.metadata.labels.unwrap_or_default().remove("kubernetes.io/service-name") else {
            return (name, None);
        };
        let is_here = |e: &Endpoint| match (&e.node_name, node) {
            (Some(of), Some(node)) => of == node,
            _ => true,
        };
        let pod = |e: Endpoint| {
            let target = e.target_ref.filter(|t| t.kind.as_deref() == Some("Pod"))?;
            Some(format!("{}/{}", target.namespace.as_deref().unwrap_or(&space), target.name?))
        };
        let mut pods: Vec<String> =
            self.endpoints.unwrap_or_default().into_iter().filter(is_here).filter_map(pod).collect();
        pods.sort_unstable();
        pods.dedup();
        pods.shrink_to_fit();
        let backing = Backing { service: format!("{space}/{service}"), pods };
        (name, Some(backing).filter(|b| !b.pods.is_empty()))
    }
}
