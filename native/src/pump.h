// Octets between pairs of TCP sockets, moved by one thread without JavaScript and without copying: splice(2) over pipes.
//
// Holds always: the thread alone touches its epoll set, its pairs' sockets and pipes, and closes them, after taking them out of the
// set; other threads hand pairs over and ask for their end. What one side sent reaches the other unaltered and in order; a
// side that ends its sending ends that direction alone; an error on either side resets both. A side is read only while
// what was read of it before is gone. No pair keeps a pipe that is empty, so an idle one costs its two sockets and nothing
// else. An owner has a bounded number of pipes and, however many others have, some that are sure; where none is to be had, or the
// kernel does not splice, octets are copied and none kept. Owners take turns, and in one turn a bounded number of octets moves.
// Once Condemn() has returned, at most the system call under way still moves octets of the pair.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "fd.h"

namespace enforcer {

// One direction.
struct Way {
  Fd out, in;  // the pipe's ends, while something is in it
  size_t piped = 0;
  std::vector<uint8_t> first;  // what was read before the hand-over
  size_t firstSent = 0;
  bool copying = false;  // urgent data stops splice(2), or the kernel has none for this socket
  bool ended = false;    // the sender's end was read
  bool shut = false;     // and was passed on
};

struct Pair {
  uint64_t id = 0, owner = 0;
  Fd side[2];
  // Of each side's socket, as far as the last call told.
  bool readable[2] = {true, true}, writable[2] = {true, true}, broken[2] = {false, false};
  Way way[2];  // way[i]: from side i to the other
  bool queued = false;
  std::atomic<bool> condemned{false};
  std::atomic<uint64_t> passed[2] = {};  // octets that the other side's socket has taken
  std::atomic<uint64_t> held{0};         // octets read and not taken
};

class Pump {
 public:
  Pump() = default;
  // Ends the thread; pairs that are left are reset.
  ~Pump();

  // 0, or the errno of *what, which failed.
  int Start(const char** what);
  // Readable when pairs have ended; belongs to the pump.
  int endedFd() const { return ended_.get(); }

  void Add(std::shared_ptr<Pair> pair);
  void Condemn(const std::shared_ptr<Pair>& pair);
  // Ids of pairs that have ended since.
  std::vector<uint64_t> TakeEnded();

 private:
  enum class Result { kIdle, kMore, kBroken };

  void Run();
  bool TakeCommands();
  size_t Turn(Pair& pair);
  Result Move(Pair& pair, int from, size_t budget);
  Result Drain(Pair& pair, int from);
  Result Fill(Pair& pair, int from);
  Result Copy(Pair& pair, int from);
  bool GetPipe(Pair& pair, Way& way);
  void PutPipe(Pair& pair, Way& way);
  void Queue(Pair& pair);
  void Finish(Pair& pair, bool reset);
  void Wake();

  Fd epoll_, wake_, ended_;
  pthread_t thread_ = {};
  bool started_ = false;

  std::mutex mutex_;
  bool stop_ = false;
  std::vector<std::shared_ptr<Pair>> added_;
  std::vector<uint64_t> condemned_, endedIds_;

  // The thread's own.
  std::unordered_map<uint64_t, std::shared_ptr<Pair>> pairs_;
  struct Owner {
    std::deque<uint64_t> queue;  // pairs that may have something to move
    bool ready = false;
    size_t pipes = 0;
  };
  std::unordered_map<uint64_t, Owner> owners_;  // all that ever were: they are numbered by places that are used again
  std::deque<Owner*> ready_;                    // those with a queue
  struct Pipe {
    Fd out, in;
  };
  std::vector<Pipe> pipes_;  // empty ones
  size_t pipesUsed_ = 0;     // others
  std::vector<uint8_t> scratch_;
};

}  // namespace enforcer
