package docker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/sandboxtest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/worker"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// doomedEnv makes this test program an agent that will be killed: it starts the
// sandbox described there, says so, and waits.
const doomedEnv = "DBOPS_TEST_DOOMED_AGENT"

type doomedAgent struct {
	Config Config // without functions
	Port   int
	Create bool // make the container but do not start it
}

func doomed() int {
	var d doomedAgent
	if err := json.Unmarshal([]byte(os.Getenv(doomedEnv)), &d); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s, err := New(d.Config, hclog.NewNullLogger())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	spec := sandboxtest.Spec("clone-1", map[wire.Side]wire.Endpoint{wire.Source: {Host: "127.0.0.1", Port: d.Port}})
	if d.Create {
		made, err := s.prepared(ctx)
		if err == nil {
			err = os.Mkdir(s.dir("clone-1"), 0o755)
		}
		if err == nil {
			_, _, err = s.create(ctx, spec, made)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	} else {
		box, err := s.Start(ctx, spec)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := worker.NewClient(box, hclog.NewNullLogger()).Ready(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	fmt.Println("ready")
	select {}
}

// startDoomed starts the agent and waits until it has done its part.
func startDoomed(t *testing.T, c Config, create bool) *exec.Cmd {
	t.Helper()
	c.Dial = nil
	description, err := json.Marshal(struct {
		Config map[string]any
		Port   int
		Create bool
	}{
		map[string]any{"AgentName": c.AgentName, "ToolsImage": c.ToolsImage, "RunDir": c.RunDir, "Binary": c.Binary, "MemoryMiB": c.MemoryMiB},
		sandboxtest.Banner(t, "source").Port, create,
	})
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	agent := exec.Command(self)
	agent.Env = append(os.Environ(), doomedEnv+"="+string(description))
	agent.Stderr = os.Stderr
	output, err := agent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, agent.Start())
	t.Cleanup(func() { _ = agent.Process.Kill() })
	line, err := bufio.NewReader(output).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	return agent
}

// kill -9 of the agent ends the worker; the next agent finds what is left and
// removes it.
func TestAgentKilled_WorkerEnds(t *testing.T) {
	t.Parallel()
	c := config(t)
	s := open(t, c)
	agent := startDoomed(t, c, false)
	found, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.True(t, found[0].Running)

	require.NoError(t, agent.Process.Kill())
	waiting, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ended, failed := s.docker.ContainerWait(waiting, found[0].ID, container.WaitConditionNotRunning)
	select {
	case answer := <-ended:
		require.Zero(t, answer.StatusCode, "in good order, and not for being stuck")
	case err := <-failed:
		t.Fatal(err)
	}
	_ = agent.Wait()

	found, err = s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.False(t, found[0].Running)
	state, err := s.docker.ContainerInspect(t.Context(), found[0].ID)
	require.NoError(t, err)
	require.Equal(t, "exited", string(state.State.Status))
	require.DirExists(t, s.dir("clone-1"))

	_, err = s.Start(t.Context(), sandboxtest.Spec("clone-1", endpoints(t)))
	var e *operation.Error
	require.ErrorAs(t, err, &e, "not before it is cleaned")
	require.Equal(t, wire.CodeConflict, e.Code)

	require.NoError(t, s.Clean(t.Context(), "clone-1"))
	require.NoError(t, s.Clean(t.Context(), "clone-1"))
	found, err = s.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, found)
	require.NoDirExists(t, s.dir("clone-1"))
	box, err := s.Start(t.Context(), sandboxtest.Spec("clone-1", endpoints(t)))
	require.NoError(t, err)
	require.NoError(t, box.Remove(t.Context()))
}

// A container that was made and never started, and a directory alone, are found
// and removed.
func TestAgentKilled_BeforeStart(t *testing.T) {
	t.Parallel()
	c := config(t)
	s := open(t, c)
	agent := startDoomed(t, c, true)
	require.NoError(t, agent.Process.Kill())
	_ = agent.Wait()
	require.NoError(t, os.Mkdir(filepath.Join(c.RunDir, "clone-2"), 0o755))
	found, err := s.List(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 2)
	for _, info := range found {
		require.False(t, info.Running)
		require.NoError(t, s.Clean(t.Context(), info.OperationID))
	}
	found, err = s.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, found)
}

// An agent sees and removes nothing of another one, not even under the same
// operation's id, nor a container that only has its container's name.
func TestClean_OthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	mine, theirs := open(t, config(t)), open(t, config(t))
	box, err := theirs.Start(t.Context(), sandboxtest.Spec("clone-1", endpoints(t)))
	require.NoError(t, err)
	defer func() { require.NoError(t, box.Remove(context.Background())) }()
	require.NoError(t, mine.Clean(t.Context(), "clone-1"))
	found, err := mine.List(t.Context())
	require.NoError(t, err)
	require.Empty(t, found)

	foreign, err := mine.docker.ContainerCreate(t.Context(), volumeConfig(mine.config.ToolsImage), nil, nil, nil, mine.name("clone-2"))
	require.NoError(t, err)
	defer func() {
		require.NoError(t, mine.docker.ContainerRemove(context.Background(), foreign.ID, removeAll))
	}()
	require.NoError(t, mine.Clean(t.Context(), "clone-2"))
	_, err = mine.Start(t.Context(), sandboxtest.Spec("clone-2", endpoints(t)))
	require.ErrorContains(t, err, "exists already")
	_, err = mine.docker.ContainerInspect(t.Context(), foreign.ID)
	require.NoError(t, err)
	state, err := theirs.docker.ContainerInspect(t.Context(), box.Facts().ContainerID)
	require.NoError(t, err)
	require.True(t, state.State.Running)
}

// A directory with anything but our sockets is not removed.
func TestClean_ForeignFilesStay(t *testing.T) {
	t.Parallel()
	s := open(t, config(t))
	dir := filepath.Join(s.config.RunDir, "journal")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "entry"), nil, 0o600))
	require.Error(t, s.Clean(t.Context(), "journal"))
	require.FileExists(t, filepath.Join(dir, "entry"))
	require.NoError(t, os.RemoveAll(dir))
}

// When Docker's answer to a create is lost, the container is found by its name
// and used; when the caller has gone meanwhile, it is removed.
func TestStart_AnswerLost(t *testing.T) {
	t.Parallel()
	c := config(t)
	var lose atomic.Bool
	c.Host = "unix://" + losingProxy(t, c.RunDir, &lose)
	s := open(t, c)
	require.NoError(t, s.Prepare(t.Context()))
	lose.Store(true)
	box, err := s.Start(t.Context(), sandboxtest.Spec("clone-1", endpoints(t)))
	require.NoError(t, err)
	require.False(t, lose.Load(), "an answer was lost")
	client := worker.NewClient(box, hclog.NewNullLogger())
	require.NoError(t, client.Ready(t.Context()))
	require.NoError(t, box.Remove(t.Context()))
	found, err := s.List(t.Context())
	require.NoError(t, err)
	for _, info := range found {
		require.Empty(t, info.ID)
	}
}

// losingProxy forwards to Docker. When told, it loses one answer to a create.
func losingProxy(t *testing.T, dir string, lose *atomic.Bool) string {
	t.Helper()
	path := filepath.Join(dir, "docker.sock")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { proxy(conn, lose) })
		}
	})
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
	})
	return path
}

// proxy handles one request per connection, then passes bytes on.
func proxy(conn net.Conn, lose *atomic.Bool) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	docker, err := net.Dial("unix", strings.TrimPrefix(DefaultHost, "unix://"))
	if err != nil {
		return
	}
	defer docker.Close()
	answers := bufio.NewReader(docker)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		request.RequestURI = ""
		request.URL.Scheme, request.URL.Host = "http", "docker"
		hijack := request.Header.Get("Upgrade") != ""
		if err := request.Write(docker); err != nil {
			return
		}
		if hijack {
			done := make(chan struct{}, 2)
			go func() { _, _ = io.Copy(docker, reader); _ = docker.(*net.UnixConn).CloseWrite(); done <- struct{}{} }()
			go func() { _, _ = io.Copy(conn, answers); done <- struct{}{} }()
			<-done
			<-done
			return
		}
		answer, err := http.ReadResponse(answers, request)
		if err != nil {
			return
		}
		if strings.HasSuffix(request.URL.Path, "/containers/create") && lose.CompareAndSwap(true, false) {
			_, err := io.Copy(io.Discard, answer.Body)
			if err == nil {
				err = errors.New("lost")
			}
			_ = err
			return
		}
		if err := answer.Write(conn); err != nil {
			return
		}
	}
}
