"""Files on local disks, S3 and GCS: listing, atomic and conditional writes, the lease on a sink."""
