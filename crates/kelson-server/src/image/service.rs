//! The table of the image service: which verb goes where.

use kelson_cri::v1;
use kelson_cri::v1::image_service_server::ImageService;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::subject;
use crate::Server;

#[tonic::async_trait]
impl ImageService for Server {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let request = request.into_inner();
        self.instrument
            .verb("ListImages", "", async { Ok(self.image_list(request)) })
            .await
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let subject = subject(request.image.as_ref()).to_owned();
        self.instrument
            .verb("ImageStatus", &subject, async {
                self.image_lookup(request)
            })
            .await
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let subject = subject(request.image.as_ref()).to_owned();
        self.instrument
            .verb("PullImage", &subject, self.image_pull(request))
            .await
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let request = request.into_inner();
        let subject = subject(request.image.as_ref()).to_owned();
        self.instrument
            .verb("RemoveImage", &subject, self.image_remove(request))
            .await
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        self.instrument
            .verb("ImageFsInfo", "", async { Ok(self.filesystems().await) })
            .await
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<BoxStream<v1::StreamImagesResponse>>, Status> {
        let request = request.into_inner();
        self.instrument
            .verb("StreamImages", "", async { Ok(self.image_stream(request)) })
            .await
    }
}
