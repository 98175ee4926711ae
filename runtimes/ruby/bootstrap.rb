# frozen_string_literal: true

# The Ruby runtime: loads the handler and serves invocations from the Runtime API 2018-06-01.
#
# Started as `ruby /var/runtime/bootstrap.rb`, Ruby 2.7 or newer. The handler that _HANDLER names is FILE.METHOD or
# FILE.CLASS.METHOD, called with `event:` and `context:`. What a function can observe (error bodies, log formats, context
# methods) follows Lambda's own client, the gem aws_lambda_ric. After an error that shows the code itself to be broken
# (NameError, NoMethodError, anything that is no StandardError) the process ends, as Lambda's does.

require 'json'
require 'logger'
require 'socket'
require 'stringio'

module Firelet
  FRAME_TEXT = 0xA55A0003
  FRAME_JSON = 0xA55A0002
  FRAME_LEVEL = { 'DEBUG' => 0x08, 'INFO' => 0x0C, 'WARN' => 0x10, 'ERROR' => 0x14, 'FATAL' => 0x18 }.freeze
  # The platform keeps at most this much of an X-Ray cause; a longer one is left out.
  MAX_XRAY_CAUSE_BYTES = 64 * 1024
  # The exceptions that keep their names in the error type that the platform is told.
  NAMED_ERRORS = %w[ArgumentError NoMethodError Exception StandardError NameError LoadError SystemExit SystemStackError].freeze

  class << self
    # Where log records go.
    attr_accessor :sink

    # Whether several invocations run at once, each in a thread of its own.
    attr_accessor :concurrent

    # The id of the invocation that runs, for log lines: of the one whose thread this is, or whose thread started this one.
    def request_id
      return @request_id unless concurrent

      Fiber.respond_to?(:[]) ? Fiber[:firelet_request_id] : Thread.current.thread_variable_get(:firelet_request_id)
    end

    def request_id=(id)
      if !concurrent then @request_id = id
      elsif Fiber.respond_to?(:[]=) then Fiber[:firelet_request_id] = id
      else Thread.current.thread_variable_set(:firelet_request_id, id)
      end
    end

    # Whether log records are JSON; set when the environment is known.
    attr_accessor :json_format
  end

  # The platform's log descriptor: frames of type, length, timestamp in microseconds and message.
  class FrameSink
    def initialize(descriptor)
      @io = IO.for_fd(descriptor, 'wb')
      @io.sync = true
      @io.close_on_exec = true
      @lock = Mutex.new
    end

    def write(text, type = FRAME_TEXT)
      message = text.to_s.encode('UTF-8', invalid: :replace, undef: :replace).b
      micros = Process.clock_gettime(Process::CLOCK_REALTIME, :microsecond)
      @lock.synchronize { @io.write([type, message.bytesize, micros].pack('NNQ>') + message) }
      message.bytesize
    end
  end

  # `$stdout` and `$stderr` with a log descriptor: each write of whole lines is one frame.
  class LineStream
    def initialize(stream, sink)
      @stream = stream
      @sink = sink
      @partial = +''
      @lock = Mutex.new
    end

    def write(*texts)
      text = texts.join
      @lock.synchronize do
        whole, newline, rest = (@partial + text).rpartition("\n")
        @sink.write(whole) unless newline.empty?
        @partial = rest
      end
      text.bytesize
    end

    %i[puts print printf putc].each do |name|
      define_method(name) do |*args|
        buffer = StringIO.new
        buffer.public_send(name, *args)
        write(buffer.string)
        nil
      end
    end

    def <<(text)
      write(text)
      self
    end

    def end_line
      @lock.synchronize do
        @sink.write(@partial) unless @partial.empty?
        @partial = +''
      end
    end

    def flush
      @stream.flush
      self
    end

    def respond_to_missing?(name, all = false)
      @stream.respond_to?(name, all)
    end

    def method_missing(name, *args, &block)
      @stream.public_send(name, *args, &block)
    end
  end

  # Loggers on the standard output write Lambda's format, with the request id, in frames that carry the level.
  module LoggerPatch
    def initialize(logdev = nil, *args, **options)
      @firelet = logdev.nil? || logdev.equal?($stdout) || logdev.equal?($stderr)
      super(@firelet ? $stdout : logdev, *args, **options)
      @default_formatter = LogFormatter.new if @firelet
    end

    def add(severity, message = nil, progname = nil)
      return super unless @firelet && Firelet.sink && (severity || UNKNOWN) >= level

      progname = @progname if progname.nil?
      if message.nil?
        message = block_given? ? yield : progname
        progname = @progname unless block_given?
      end
      name = format_severity(severity || UNKNOWN)
      type = (Firelet.json_format ? FRAME_JSON : FRAME_TEXT) | FRAME_LEVEL.fetch(name, 0)
      Firelet.sink.write(format_message(name, Time.now, progname, message), type)
      true
    end
    alias log add
  end

  # Ruby's own format with the request id in it, or one JSON object per record.
  class LogFormatter < Logger::Formatter
    def call(severity, time, progname, msg)
      return json(severity, time, progname, msg) if Firelet.json_format

      head = format('%<initial>s, [%<time>s #%<process>d] %<severity>5s %<request_id>s -- %<progname>s: ',
                    initial: severity[0], time: format_datetime(time), process: Process.pid, severity: severity,
                    request_id: Firelet.request_id, progname: progname)
      "#{head}#{Firelet.utf8(msg2str(msg))}\n"
    end

    private

    def json(severity, time, progname, msg)
      record = {
        timestamp: time.utc.strftime('%Y-%m-%dT%H:%M:%S.%6NZ'),
        level: severity,
        message: Firelet.utf8(msg.is_a?(Exception) ? msg.message : msg2str(msg)),
        requestId: Firelet.request_id
      }
      record[:logger] = Firelet.utf8(progname) unless progname.to_s.empty?
      if msg.is_a?(Exception)
        record[:errorType] = msg.class.to_s
        record[:errorMessage] = Firelet.utf8(msg.message)
        record[:stackTrace] = Array(msg.backtrace).map { |line| Firelet.utf8(line) }
      end
      "#{JSON.generate(record.compact)}\n"
    end
  end

  def self.utf8(value)
    value.to_s.encode('UTF-8', invalid: :replace, undef: :replace)
  end

  # What a handler gets as `context:`.
  class LambdaContext
    attr_reader :aws_request_id, :invoked_function_arn, :log_group_name, :log_stream_name, :function_name,
                :memory_limit_in_mb, :function_version, :identity, :client_context, :deadline_ms, :tenant_id

    def initialize(headers)
      @deadline_ms = headers['lambda-runtime-deadline-ms'].to_i
      @aws_request_id = headers['lambda-runtime-aws-request-id']
      @invoked_function_arn = headers['lambda-runtime-invoked-function-arn']
      @tenant_id = headers['lambda-runtime-aws-tenant-id']
      @log_group_name = ENV['AWS_LAMBDA_LOG_GROUP_NAME']
      @log_stream_name = ENV['AWS_LAMBDA_LOG_STREAM_NAME']
      @function_name = ENV['AWS_LAMBDA_FUNCTION_NAME']
      @memory_limit_in_mb = ENV['AWS_LAMBDA_FUNCTION_MEMORY_SIZE']
      @function_version = ENV['AWS_LAMBDA_FUNCTION_VERSION']
      @identity = parsed(headers['lambda-runtime-cognito-identity'])
      @client_context = parsed(headers['lambda-runtime-client-context'])
    end

    def get_remaining_time_in_millis
      [@deadline_ms - Process.clock_gettime(Process::CLOCK_REALTIME, :millisecond), 0].max
    end

    private

    def parsed(text)
      JSON.parse(text) if text
    end
  end

  # A client of the Runtime API over one connection that is kept open.
  class RuntimeApi
    PREFIX = '/2018-06-01/runtime/'

    class Error < StandardError; end

    def initialize(address)
      @address = address
      @host, _, @port = address.rpartition(':')
      @common = "Host: #{address}\r\nUser-Agent: firelet-ruby/#{RUBY_VERSION}\r\n"
    end

    def next_invocation
      status, headers, body = exchange("GET #{PREFIX}invocation/next HTTP/1.1\r\n#{@common}\r\n")
      raise Error, "the Runtime API refused next with status #{status}: #{body}" unless status == 200

      [headers, body]
    end

    def respond(id, body, content_type)
      post("invocation/#{id}/response", body, "Content-Type: #{content_type}\r\n")
    end

    def fail(id, body, type, cause)
      headers = "Content-Type: application/json\r\nLambda-Runtime-Function-Error-Type: #{type}\r\n"
      headers += "Lambda-Runtime-Function-XRay-Error-Cause: #{cause}\r\n" if cause.bytesize <= MAX_XRAY_CAUSE_BYTES
      post("invocation/#{id}/error", body, headers)
    end

    def fail_init(body, type)
      post('init/error', body, "Content-Type: application/json\r\nLambda-Runtime-Function-Error-Type: #{type}\r\n")
    end

    # Says that the snapshot can be taken; returns when the process has been restored from it.
    def restore_next
      status, _, body = exchange("GET #{PREFIX}restore/next HTTP/1.1\r\n#{@common}\r\n")
      raise Error, "the Runtime API refused restore/next with status #{status}: #{body}" unless status == 200
    end

    def fail_restore(body, type)
      post('restore/error', body, "Content-Type: application/json\r\nLambda-Runtime-Function-Error-Type: #{type}\r\n")
    end

    private

    def post(path, body, headers)
      head = "POST #{PREFIX}#{path} HTTP/1.1\r\n#{@common}#{headers}Content-Length: #{body.bytesize}\r\n\r\n"
      exchange(head.b + body.b).first
    end

    def exchange(request)
      reused = !@socket.nil?
      begin
        @socket ||= connect
        @socket.write(request)
        receive
      rescue EOFError, SystemCallError
        close
        # An idle connection may have been closed, by the server or by a restore from a snapshot.
        raise unless reused

        reused = false
        retry
      end
    end

    def connect
      socket = TCPSocket.new(@host, @port.to_i)
      socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1)
      socket.binmode
      socket
    end

    def close
      @socket&.close
      @socket = nil
    end

    def receive
      status = (@socket.gets("\r\n") || raise(EOFError)).split(' ', 3)[1].to_i
      headers = {}
      until (line = @socket.gets("\r\n").to_s.chomp("\r\n")).empty?
        name, _, value = line.partition(':')
        headers[name.downcase] = value.strip.force_encoding('UTF-8')
      end
      body = headers['transfer-encoding'].to_s.casecmp?('chunked') ? chunks : exactly(headers['content-length'].to_i)
      close if headers['connection'].to_s.casecmp?('close')
      [status, headers, body.force_encoding('UTF-8')]
    end

    def exactly(length)
      body = length.zero? ? +'' : @socket.read(length).to_s
      raise Error, 'the Runtime API closed the connection inside a message' if body.bytesize < length

      body
    end

    def chunks
      body = +''.b
      loop do
        size = @socket.gets("\r\n").to_s.to_i(16)
        part = exactly(size)
        @socket.gets("\r\n")
        return body if size.zero?

        body << part
      end
    end
  end

  # The handler of the function, loaded once.
  class Handler
    def initialize(text)
      parts = text.split('.')
      unless [2, 3].include?(parts.size)
        raise ArgumentError, "Invalid handler #{parts}, must be of form FILENAME.METHOD or FILENAME.CLASS.METHOD where " \
                             'FILENAME corresponds with an existing Ruby source file FILENAME.rb, CLASS is an optional ' \
                             'module/class namespace and METHOD is a callable method. If using CLASS, METHOD must be a ' \
                             'class-level method.'
      end
      @file = parts.first
      @class_name = parts[1] if parts.size == 3
      @method = parts.last
    end

    def load
      require @file
    end

    def call(event, context)
      target = @class_name ? Kernel.const_get(@class_name) : TOPLEVEL_BINDING.receiver
      target.__send__(@method, event: event, context: context)
    end
  end

  # An exception of the function's in the forms in which it is reported.
  class Report
    OWN = "#{__dir__}/"

    attr_reader :type

    def initialize(error, phase)
      name = error.class.to_s
      @trace = trace(error)
      @message = Firelet.utf8(error.message)
      @body = { errorMessage: @message, errorType: "#{phase}<#{name}>", stackTrace: @trace.map(&:to_s) }
      @type = NAMED_ERRORS.include?(name) ? "#{phase}<#{name}>" : 'Function<UserException>'
    end

    def json
      JSON.generate(@body)
    end

    def log(heading)
      $stdout.write("#{heading}\n#{JSON.pretty_generate(@body)}\n")
    end

    def xray_cause
      stack = @trace.map { |place| { label: place.label, path: place.path, line: place.lineno } }
      exception = { message: @message, type: @body[:errorType], stack: stack }
      JSON.generate(working_directory: Dir.pwd, exceptions: [exception], paths: stack.map { |place| place[:path] }.uniq)
    end

    private

    # The function's own frames: what is below the runtime's is of no use to anybody.
    def trace(error)
      (error.backtrace_locations || []).first(100).take_while { |place| !place.absolute_path.to_s.start_with?(OWN) }
    end
  end

  # A process that is started before it is known whose it will be waits here for its environment. Nothing is loaded ahead
  # for the function's sake: it would find what it did not ask for.
  module Prestart
    # The platform gives this descriptor at the start; whose environment it is comes later.
    KEPT = '_LAMBDA_TELEMETRY_LOG_FD'

    def self.wait(descriptor)
      io = IO.for_fd(descriptor, 'r+b')
      io.syswrite("\n")
      text = io.read
      io.close
      # Nobody wanted this one.
      exit!(0) if text.empty?
      given = JSON.parse(text)
      ENV.replace(ENV.to_h.slice(KEPT).merge(given['env'].to_h))
      Dir.chdir(given['cwd'])
      # The gems of the function and of its layers were not there when these were looked for.
      return unless defined?(Gem)

      Gem.clear_paths
      Gem::Specification.reset
    end
  end

  # The process: loads the handler, then serves invocations until the platform ends it.
  class Runtime
    def initialize
      @api = RuntimeApi.new(ENV.fetch('AWS_LAMBDA_RUNTIME_API'))
    end

    def run
      open_logs
      root = ENV['LAMBDA_TASK_ROOT'] || Dir.pwd
      $LOAD_PATH.unshift(root) unless $LOAD_PATH.include?(root)
      begin
        @handler = Handler.new(ENV['_HANDLER'] || ARGV.first.to_s)
        @handler.load
      rescue Exception => e # rubocop:disable Lint/RescueException -- a SystemExit at init is reported like the others
        report = Report.new(e, 'Init')
        report.log('Init error when loading handler')
        end_lines
        @api.fail_init(report.json, report.type)
        exit!(252)
      end
      complete_snapshot if ENV['AWS_LAMBDA_INITIALIZATION_TYPE'] == 'snap-start'
      concurrency = ENV.fetch('AWS_LAMBDA_MAX_CONCURRENCY', '1').to_i
      return serve_concurrently(concurrency) if concurrency > 1

      loop { serve(@api, *@api.next_invocation) }
    end

    private

    # Several invocations at once: a thread for each, with a connection of its own. What ends one of them ends all.
    def serve_concurrently(count)
      Firelet.concurrent = true
      Thread.abort_on_exception = true
      threads = Array.new(count) do
        Thread.new do
          api = RuntimeApi.new(ENV.fetch('AWS_LAMBDA_RUNTIME_API'))
          loop { serve(api, *api.next_invocation) }
        end
      end
      threads.each(&:join)
    end

    # The hooks before the snapshot, the wait for the restore, the hooks after it. The process stands in `restore/next`
    # while the snapshot is taken; each clone returns from there on its own.
    def complete_snapshot
      begin
        SnapshotRestore.run_before_snapshot if defined?(SnapshotRestore)
        end_lines
        @api.restore_next
      rescue Exception => e # rubocop:disable Lint/RescueException -- whatever a hook raises ends the init
        report = failed_hook(e, 'Init', 'Error raised before the snapshot')
        @api.fail_init(report.json, 'Runtime.BeforeSnapshotError')
        exit!(64)
      end
      begin
        draw_anew
        SnapshotRestore.run_after_restore if defined?(SnapshotRestore)
        end_lines
      rescue Exception => e # rubocop:disable Lint/RescueException -- whatever a hook raises ends the restore
        report = failed_hook(e, 'Restore', 'Error raised after the restore')
        @api.fail_restore(report.json, 'Runtime.AfterRestoreError')
        exit!(65)
      end
    end

    # The generators of this process, which otherwise would go on alike in all clones. SecureRandom asks the kernel.
    def draw_anew
      Random.srand
      OpenSSL::Random.random_add(Random.urandom(64), 64.0) if defined?(OpenSSL::Random)
    end

    def failed_hook(error, phase, heading)
      report = Report.new(error, phase)
      report.log(heading)
      end_lines
      report
    end

    def open_logs
      Firelet.json_format = ENV['AWS_LAMBDA_LOG_FORMAT'].to_s.casecmp?('JSON')
      descriptor = ENV.delete('_LAMBDA_TELEMETRY_LOG_FD')
      $stdout.sync = true
      $stderr.sync = true
      if descriptor
        Firelet.sink = FrameSink.new(descriptor.to_i)
        @streams = [$stdout = LineStream.new($stdout, Firelet.sink), $stderr = LineStream.new($stderr, Firelet.sink)]
      end
      Logger.prepend(LoggerPatch)
    end

    def end_lines
      @streams&.each(&:end_line)
    end

    def serve(api, headers, payload)
      id = Firelet.request_id = headers['lambda-runtime-aws-request-id']
      # The variable is everybody's.
      ENV['_X_AMZN_TRACE_ID'] = headers['lambda-runtime-trace-id'] unless Firelet.concurrent
      begin
        body, type = invoke(headers, payload)
        end_lines
        posted(api.respond(id, body, type), 'success')
      rescue RuntimeApi::Error
        raise
      rescue Exception => e # rubocop:disable Lint/RescueException -- everything that a handler raises is its answer
        broken = e.is_a?(NameError) || !e.is_a?(StandardError)
        report = Report.new(e, 'Function')
        report.log(broken ? 'Critical exception from handler' : 'Error raised from handler method')
        end_lines
        posted(api.fail(id, report.json, report.type, report.xray_cause), 'error')
        # Beside others it is theirs too.
        exit!(255) if broken && !Firelet.concurrent
      end
    end

    def invoke(headers, payload)
      json = headers.fetch('content-type', 'application/json') == 'application/json'
      response = @handler.call(json ? JSON.parse(payload) : payload, LambdaContext.new(headers))
      return [response.read.to_s, 'application/unknown'] if response.is_a?(StringIO) || response.is_a?(IO)

      [response.to_json, 'application/json']
    end

    def posted(status, what)
      return if status < 300

      $stderr.write("LAMBDA_RUNTIME Failed to post handler #{what} response. Http response code: #{status}.\n")
      exit!(1) if status >= 500
    end
  end
end

if $PROGRAM_NAME == __FILE__
  Firelet::Prestart.wait(ENV['FIRELET_PRESTART_FD'].to_i) if ENV.key?('FIRELET_PRESTART_FD')
  Firelet::Runtime.new.run
end
