# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where backups are kept: the options of every module."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  bucket:
    description: Name of the S3 bucket. Exactly one of O(bucket), O(directory) and O(rclone_remote) is needed.
    type: str
  directory:
    description:
      - Absolute path of a directory on the target host that is used instead of a bucket, such as a mounted network
        share.
      - Exactly one of O(bucket), O(directory) and O(rclone_remote) is needed.
    type: path
  rclone_remote:
    description:
      - A remote of rclone and a path there, such as C(sftp:backups), for what S3 does not cover, such as SFTP, Azure
        or Google Drive.
      - Exactly one of O(bucket), O(directory) and O(rclone_remote) is needed.
      - The remote is one of rclone's configuration on the target host, or of variables E(RCLONE_CONFIG_NAME_TYPE) and
        so on in the task's environment. Its options cannot stand here, as every user of the host can read the
        arguments of a process.
      - It must take a stream of unknown length, and rename or copy files by itself. A remote that cannot is refused.
    type: str
  rclone_config:
    description: rclone's configuration file on the target host. When not given, E(RCLONE_CONFIG) of the task's
      environment is used, or where rclone itself looks for it.
    type: path
  rclone_path:
    description: The rclone program. When not given, the one on the path is used.
    type: path
  prefix:
    description: Leading part of the keys, with or without a slash at its end. It separates those who share a bucket
      or directory.
    type: str
  endpoint_url:
    description: URL of an S3-compatible service, such as MinIO, Ceph, R2 or B2. When not given, Amazon's own is used.
    type: str
  region:
    description: Region of the bucket. When not given, boto3's own configuration is used.
    type: str
  access_key:
    description:
      - Access key of the account. Needs O(secret_key) and excludes O(profile).
      - When not given, boto3's own credential chain is used on the target host, that is E(AWS_ACCESS_KEY_ID) and its
        companions in the task's environment, shared configuration files, web identity, and the role of the container
        or instance. The controller's environment is not read.
    type: str
  secret_key:
    description: Secret key that belongs to O(access_key).
    type: str
  session_token:
    description: Session token that belongs to temporary credentials.
    type: str
  profile:
    description: Name of a profile in the target host's AWS configuration files.
    type: str
  validate_certs:
    description: Whether the service's TLS certificate is checked.
    type: bool
    default: true
  aws_ca_bundle:
    description: File on the target host with the certificate authorities that may have signed the service's
      certificate.
    type: path
  addressing_style:
    description:
      - Whether the bucket's name is part of the URL's path or of its host name.
      - V(auto) means V(path) with O(endpoint_url), and what boto3 chooses without it.
    type: str
    default: auto
    choices: [auto, path, virtual]
  checksums:
    description:
      - When to send, and to check, S3's own checksum headers.
      - Some S3-compatible services refuse them, hence V(when_required). A backup carries checksums of its own in
        either case.
    type: str
    default: when_required
    choices: [when_required, when_supported]
  encryption_mode:
    description: Encryption at rest to ask the service for when a backup is written. V(none) asks for nothing.
    type: str
    default: none
    choices: [none, AES256, "aws:kms"]
  encryption_kms_key_id:
    description: KMS key to encrypt with. Only with O(encryption_mode=aws:kms). When not given, the account's default
      key is used.
    type: str
  sse_customer_key:
    description:
      - Key of your own that the service encrypts with and does not keep (SSE-C), 32 bytes in base64.
      - Without it nobody can read what was stored with it, and it reads nothing else. Excludes O(encryption_mode).
        Services refuse it over plain HTTP.
    type: str
  age_recipients:
    description:
      - Public keys of age (C(age1...)), or files on the target host with one a line; an entry with a slash is a file.
      - What a backup writes is encrypted for each of them on the target host, and its key ends in C(.age). Any of their
        identities restores it. Reading needs no recipients.
    type: list
    elements: str
    default: []
  age_identity:
    description:
      - Secret keys of age (C(AGE-SECRET-KEY-1...)), one a line as in the file that C(age-keygen) writes. One of them
        has to be that of a recipient whom the backup was made for.
      - Needed to restore and verify encrypted backups and to see into them, and for nothing else. Keep it off the hosts
        that only back up.
    type: str
  age_identity_file:
    description: File on the target host with the same. Excludes O(age_identity).
    type: path
  stall_timeout:
    description:
      - How long a request to the bucket, or of rclone to its remote, may go without a single byte in either
        direction, such as V(60s) or V(5m).
      - Then it is made again on a new connection. A bucket that stays silent for six times as long fails the task.
    type: str
    default: 60s
requirements:
  - boto3 for the Python of the target host, if O(bucket) is used
  - cryptography for the Python of the target host, if O(age_recipients), O(age_identity) or O(age_identity_file) is
    used
  - rclone 1.57 or newer on the target host, if O(rclone_remote) is used
  - Python 3.9 or newer on the target host
notes:
  - An empty string counts as an option that is not given. A task can so undo what C(module_defaults) says.
"""
