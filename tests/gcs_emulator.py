"""A stand-in for Google Cloud Storage: `python gcs_emulator.py PORT`, with one bucket, `bucket`, in memory."""

import sys

from gcp_storage_emulator.handlers import objects

_download = objects.download


def _with_generation(request, response, storage, *args, **kwargs):
    # A header that Cloud Storage sends with every object, and that TensorStore relies on; the emulator leaves it out.
    try:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = str(found["generation"])
    except Exception:
        pass  # no such object: the next line gives that answer
    return _download(request, response, storage, *args, **kwargs)


objects.download = _with_generation

from gcp_storage_emulator.server import create_server  # noqa: E402 - after its handler is replaced

server = create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket")
server.run()
