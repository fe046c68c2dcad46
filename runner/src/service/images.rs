//! Images, for those who apply functions: what a name leads to now.

use stoker_core::ImageRef;
use stoker_image::Fault;
use stoker_proto::runner::v1 as wire;
use tonic::Status;

use crate::images::Images;

/// Asks the registry of an image for the digest that its name leads to.
///
/// # Errors
/// As `ResolveImage` in the protocol has them.
pub async fn resolve(
    images: &Images,
    request: wire::ResolveImageRequest,
) -> Result<wire::ResolveImageResponse, Status> {
    let image = ImageRef::parse(&request.reference).map_err(Status::invalid_argument)?;
    let credentials = Some(request.credentials.as_str()).filter(|name| !name.is_empty());
    let pinned = images.resolve(&image, credentials).await.map_err(|error| match error.fault {
        Fault::Missing => Status::not_found(error.message),
        Fault::Denied => Status::permission_denied(error.message),
        Fault::Image => Status::failed_precondition(error.message),
        Fault::Registry | Fault::Store | Fault::Full | Fault::Abandoned => Status::unavailable(error.message),
    })?;
    Ok(wire::ResolveImageResponse { pinned: pinned.to_string() })
}
