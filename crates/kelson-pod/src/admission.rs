//! Which command is legal in which state: plain data, no I/O, no waiting. To remove a pod or a container is
//! legal always, and so is not in the tables: it is a wish that waits for its time.

/// What a pod is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodStage {
    /// It is being made.
    Starting,
    /// It runs.
    Ready,
    /// It runs, and is about to be stopped.
    Ending,
    /// It is being taken down.
    Stopping,
    /// It is down.
    NotReady,
    /// It is being removed.
    Removing,
}

/// What can be asked of a pod. Making a container is a command to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodCommand {
    /// The same pod is asked for again.
    Run,
    Stop,
    CreateContainer,
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerStage {
    Created,
    Starting,
    Running,
    Exited,
    Removing,
}

impl ContainerStage {
    /// The stage in a word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Removing => "being removed",
        }
    }
}

/// What can be asked of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerCommand {
    /// The same container is asked for again.
    Create,
    Start,
    Stop,
    /// What it may use is to change.
    Update,
}

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is wanted: done as soon as the state allows it, and answered then. Asking twice is one wish.
    Wish,
    /// It joins what is under way and gets its result.
    Join,
    /// It is so already.
    Done,
    /// It cannot be.
    Refuse,
}

/// The rules for a pod.
pub(crate) fn pod(stage: PodStage, command: PodCommand) -> Decision {
    use {Decision as D, PodCommand as C, PodStage as S};
    match (command, stage) {
        (C::Run, S::Starting) => D::Join,
        (C::Run, S::Ready) => D::Done,
        (C::Run, S::Ending | S::Stopping | S::NotReady | S::Removing) => D::Refuse,
        (C::Stop, S::Starting | S::Ready | S::Ending | S::Stopping) => D::Wish,
        (C::Stop, S::NotReady | S::Removing) => D::Done,
        (C::CreateContainer, S::Ready) => D::Wish,
        (C::CreateContainer, _) => D::Refuse,
    }
}

/// The rules for a container.
pub(crate) fn container(stage: ContainerStage, command: ContainerCommand) -> Decision {
    use {ContainerCommand as C, ContainerStage as S, Decision as D};
    match (command, stage) {
        (C::Create, S::Removing) => D::Refuse,
        (C::Create, _) => D::Done,
        (C::Start, S::Created) => D::Wish,
        (C::Start, S::Starting) => D::Join,
        // Started once only.
        (C::Start, S::Running | S::Exited | S::Removing) => D::Refuse,
        // What was never started needs no stop, and may be started still.
        (C::Stop, S::Created | S::Exited | S::Removing) => D::Done,
        (C::Stop, S::Starting | S::Running) => D::Wish,
        (C::Update, S::Created | S::Running) => D::Wish,
        (C::Update, S::Starting | S::Exited | S::Removing) => D::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: [PodStage; 6] = [
        PodStage::Starting,
        PodStage::Ready,
        PodStage::Ending,
        PodStage::Stopping,
        PodStage::NotReady,
        PodStage::Removing,
    ];
    const CONTAINERS: [ContainerStage; 5] = [
        ContainerStage::Created,
        ContainerStage::Starting,
        ContainerStage::Running,
        ContainerStage::Exited,
        ContainerStage::Removing,
    ];

    #[test]
    fn to_stop_is_never_refused() {
        for stage in PODS {
            assert_ne!(pod(stage, PodCommand::Stop), Decision::Refuse);
        }
        for stage in CONTAINERS {
            assert_ne!(container(stage, ContainerCommand::Stop), Decision::Refuse);
        }
    }

    #[test]
    fn containers_are_made_only_in_a_ready_pod() {
        for stage in PODS {
            let allowed = pod(stage, PodCommand::CreateContainer) == Decision::Wish;
            assert_eq!(allowed, stage == PodStage::Ready, "{stage:?}");
        }
    }

    #[test]
    fn a_container_is_started_once() {
        for stage in CONTAINERS {
            let starts = container(stage, ContainerCommand::Start) == Decision::Wish;
            assert_eq!(starts, stage == ContainerStage::Created, "{stage:?}");
        }
        assert_eq!(
            container(ContainerStage::Starting, ContainerCommand::Start),
            Decision::Join,
            "a retry gets the result of the start under way"
        );
    }

    #[test]
    fn asking_again_for_what_is_there_is_answered_at_once() {
        assert_eq!(pod(PodStage::Ready, PodCommand::Run), Decision::Done);
        assert_eq!(pod(PodStage::Starting, PodCommand::Run), Decision::Join);
        assert_eq!(pod(PodStage::NotReady, PodCommand::Run), Decision::Refuse);
    }
}
