package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/audit"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/config"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine/all"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/journal"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/metrics"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/runner"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/docker"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/worker"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// goodbye is how long the token may take to be ended at the very end.
const goodbye = 5 * time.Second

// serveAgent puts the agent's parts together and works until ctx ends.
func serveAgent(ctx context.Context, c config.Config, version string, log hclog.Logger) (err error) {
	log.Info("starting", "version", version, "name", c.Name, "vault", c.Vault.Address, "mount", c.Vault.Mount)
	unlock, err := lockState(c.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()

	counts := metrics.New(version)
	client, err := vault.Dial(vault.Config{
		Address: c.Vault.Address, CACert: c.Vault.CACert, Namespace: c.Vault.Namespace, Mount: c.Vault.Mount,
		UserAgent: "dbops-agent/" + version + " (" + c.Name + ")", WithoutEnvironmentToken: true, Observer: counts,
	})
	if err != nil {
		return err
	}
	box, err := docker.New(docker.Config{
		AgentName: c.Name, ToolsImage: c.Sandbox.ToolsImage, RunDir: c.RunDir, Host: dockerHost(c.Sandbox.DockerHost),
		MemoryMiB: int64(c.Sandbox.MemoryMiB), TempMiB: int64(c.Sandbox.TmpMiB),
	}, log.Named("sandbox"))
	if err != nil {
		return fmt.Errorf("make sandboxes: %w", err)
	}
	stopServing, err := serveMetrics(ctx, c.Telemetry, counts, log)
	if err != nil {
		return err
	}
	defer stopServing()
	book, err := journal.Open(filepath.Join(c.StateDir, "journal"))
	if err != nil {
		return err
	}
	work := vault.NewWork(client, c.Name)
	watch := audit.NewWatch(work, log)
	sink, err := audit.Open(audit.Options{
		Dir: filepath.Join(c.StateDir, "spool"), Agent: c.Name, Ready: watch.Ready, Log: log,
	}, work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sink.Close()) }()

	session := vault.NewSession(client, vault.AppRole{
		Agent: c.Name, Mount: c.Vault.AppRole.Mount, RoleIDFile: c.Vault.AppRole.RoleIDFile, SecretIDFile: c.Vault.AppRole.SecretIDFile,
		Wrapped: c.Vault.AppRole.Wrapped, RemoveSecretID: c.Vault.AppRole.RemoveSecretIDAfterRead, TokenFile: tokenFile(c),
	}, log)
	if err := session.Login(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop while Vault was away
		}
		return err
	}
	facts := audit.NewFacts(work, watch.Ready, log)
	worker := runner.New(runner.Options{
		MaxOperations: c.MaxOperations, Vault: work, Events: sink, Audit: watch, Facts: facts, Journal: book, Sandbox: box,
		Connect: connect, Planners: planners(), Observer: counts, Log: log,
	})

	counts.Watch(func() metrics.Now { return standing(worker, sink, watch) })

	// Session, sink and watch serve the runner, and so end after it.
	background, end := context.WithCancel(context.WithoutCancel(ctx))
	var services sync.WaitGroup
	for _, service := range []func(context.Context){
		session.Run, sink.Run, watch.Run, facts.Run,
		func(ctx context.Context) { feedWatchdog(ctx, worker.Alive, log) },
	} {
		services.Go(func() { service(background) })
	}
	notify(daemon.SdNotifyReady, log)
	leaving := context.AfterFunc(ctx, func() { notify(daemon.SdNotifyStopping, log) })
	defer leaving()
	err = worker.Run(ctx)
	end()
	services.Wait()

	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
	defer cancel()
	if closeErr := session.Close(limited); closeErr != nil {
		log.Warn("the token is left to end by itself", "error", closeErr)
	}
	return err
}

func connect(box sandbox.Box, log hclog.Logger) runner.Worker { return worker.NewClient(box, log) }

func planners() map[wire.EngineType]runner.Planner {
	known := make(map[wire.EngineType]runner.Planner)
	for _, engine := range all.Engines() {
		known[engine.Type()] = engine
	}
	return known
}

// tokenFile is where the token outlives a restart. A plain file beside the
// sandboxes' directories is in nobody's way there.
func tokenFile(c config.Config) string {
	if !c.Vault.AppRole.KeepToken {
		return ""
	}
	return filepath.Join(c.RunDir, "token")
}

// dockerHost is the configured daemon, else that of the environment.
func dockerHost(configured string) string {
	if configured != "" {
		return configured
	}
	return os.Getenv("DOCKER_HOST")
}

// lockState makes sure that one agent at a time works with a state directory:
// two of them would break the chain of events.
func lockState(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock state directory: another agent works with %s: %w", dir, err), file.Close())
	}
	return file.Close, nil
}

// feedWatchdog tells systemd that the agent lives, as long as it does.
func feedWatchdog(ctx context.Context, alive func() bool, log hclog.Logger) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog cannot be used", "error", err)
		return
	}
	if interval == 0 {
		return
	}
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if alive() {
				notify(daemon.SdNotifyWatchdog, log)
			} else {
				log.Error("no poll for a while: systemd will restart the agent")
			}
		}
	}
}

func notify(state string, log hclog.Logger) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("cannot notify systemd", "error", err)
	}
}
