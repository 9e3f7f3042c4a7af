//! The section that says where etcd is, for a cluster whose store it is. Part of `build`.

use std::time::Duration;

use super::build::Reader;
use super::options::EtcdOptions;
use super::section::Table;
use super::{Etcd, Login};

impl Reader<'_, '_> {
    /// etcd, if the cluster names one; the inner `None` for one with an error.
    pub(super) fn etcd(&mut self, cluster: &mut Table<'_, '_>) -> Option<Option<Etcd>> {
        if !cluster.has("etcd") {
            return Some(None);
        }
        let mut table = self.section(cluster, "etcd");
        let options = EtcdOptions::read(&mut table, self.problems);
        let etcd = options.map(|options| self.etcd_of(&table, options));
        table.finish(self.problems);
        etcd.map(Some)
    }

    fn etcd_of(&mut self, table: &Table<'_, '_>, mut options: EtcdOptions) -> Etcd {
        for path in [&mut options.password_file, &mut options.ca, &mut options.certificate, &mut options.key] {
            self.absolute(path);
        }
        if options.endpoints.is_empty() {
            self.error(table, "endpoints", "is empty", "name at least one member of etcd");
        }
        if options.certificate.is_some() != options.key.is_some() {
            self.error(table, "certificate", "and key belong together", "give both or none");
        }
        if options.lease < Duration::from_secs(2) || options.lease.subsec_nanos() != 0 {
            self.error(table, "lease", "is not a lease of etcd", "give whole seconds, at least \"2s\"");
        }
        if !options.prefix.starts_with('/') {
            self.error(table, "prefix", "does not begin with a slash", "give a prefix such as \"/pgsteady\"");
        }
        let files = [("certificate", &options.certificate), ("key", &options.key), ("ca", &options.ca)];
        self.files_exist(table, &files);
        let given = (options.password, options.password_file.as_deref());
        let password = self.password(table, ["password", "password_file"], given);
        if options.user.is_some() != password.is_some() {
            self.error(table, "user", "and its password belong together", "give both or none");
        }
        Etcd {
            endpoints: options.endpoints,
            prefix: options.prefix,
            login: options.user.map(|user| Login { user: user.as_str().into(), password }),
            tls: topology::TlsFiles { ca: options.ca, certificate: options.certificate, key: options.key },
            lease: options.lease,
        }
    }
}
