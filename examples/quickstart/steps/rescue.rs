//! The VM that no longer boots, as it were: rescued from another disk, then rebuilt.

use super::{App, Result, done, ensure};

impl App {
    /// Boots it from a clone of its image, beside its own disk; then from a new first disk.
    pub(super) async fn rescue_and_rebuild(&mut self, image: &str) -> Result<String> {
        let vm = self.vm()?;
        self.stop().await?;
        done(vm.rescue(image).await?, 30).await?;
        let rescue = self.first_disks().await?;
        ensure(rescue == "rescue root", || {
            format!("rescued, its disks are {rescue}")
        })?;
        self.mount_and_check().await?;
        self.stop().await?;
        done(vm.unrescue().await?, 30).await?;
        done(vm.rebuild("root", image).await?, 30).await?;
        let rebuilt = self.first_disks().await?;
        ensure(rebuilt == "root data", || {
            format!("rebuilt, its disks are {rebuilt}")
        })?;
        self.mount_and_check().await?;
        Ok("booted from a rescue disk beside its own, then from a new one".to_owned())
    }

    /// Starts it; the serial numbers of the guest's first two disks.
    async fn first_disks(&mut self) -> Result<String> {
        done(self.vm()?.start().await?, 60).await?;
        self.ready().await?;
        let serials = "cat /sys/block/vda/serial; echo ' '; cat /sys/block/vdb/serial";
        let shown = self.console()?.run(serials).await?;
        Ok(shown.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}
